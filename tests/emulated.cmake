# The cases that QEMU's user mode can't run, though they need no KVM: without_<test>, which
# vmspace_test() keeps CTest from running where programs are cross-compiled. What can tell by itself
# that something is missing (huge pages, userfaultfd, NUMA policies) skips with its reason instead.

# madvise(2): all advice but MADV_DONTNEED is ignored, and said to have been taken.
list(APPEND without_memory_mapping_test Discard.LockedMemoryIsGivenBackAndStaysLocked
     Discard.LockedPagesThatTheKernelCannotDropAreRefusedAndKeepTheirContents
     Discard.MemoryThatTakesThePlaceOfAFileHasItsProtectionPolicyAndAdvice Discard.SharedAnonymousMemory
     MemoryMapping.AdviceReachesTheKernel MemoryMapping.CollapsesPagesIntoHugeOnesWhateverTheSettingsSay
     MemoryMapping.ForkedChildrenDoNotGetDontforkMemory
     MemoryMapping.MemoryAdvisedAgainstHugePagesIsNotCollapsed
     MemoryMapping.ReadingUntouchedAnonymousMemoryMakesNothingResident
     MemoryMapping.ResidencyTellsPagesAndHowManyAreHuge)
list(APPEND without_host_calls_test LesserKernels.OlderKernelsStillTellWhatIsHuge
     LesserKernels.WithoutSysTheKernelIsAskedForHugePages)
list(APPEND without_memory_blocks_test MemoryBlocksTest.AWholeRegionIsReadTheShortWayAndHasAllSlots
     MemoryBlocksTest.MemoryOfEveryKindComesInBlocks
     MemoryBlocksTest.PagesAreThereWhenThePlugReturnsIfTheRegionAsksForIt
     MemoryBlocksTest.ThePagesGoWhenNoTableHasThemAnyMore
     MemoryBlocksTest.WhatIsUnpluggedIsGivenBackAndComesBackAsZeros)
list(APPEND without_memory_region_test MemoryRegion.PopulatesSeveralRegionsAtOnce
     MemoryRegionPart.ARemovedPartIsGivenBackAndTheRestStays)
list(APPEND without_page_scan_test PageScanKinds.PresentPagesOfZerosAreFoundAndAbsentOnesStayAbsent
     PageScanKinds.WhatAnotherProcessWroteIsFound PageScanKinds.WhatWasWrittenIsFoundAndNothingIsMade
     PageScanKinds.WhereAKernelOrASandboxLacksOneMeansAnotherStandsIn)
list(APPEND without_populate_test Populate.FillsSeveralRangesAtOnceAndNothingElse
     Populate.KeepsHugePagesWhole Populate.MakesEveryPageResidentOnAnyNumberOfThreads
     Populate.ReadsPrivateFilesInsteadOfCopyingThem Populate.ReadsWhatMayOnlyBeRead)
list(APPEND without_populate_nodes_test PopulateNodes.*)

# mmap(2): huge pages are refused whatever the pool has.
list(APPEND without_memory_mapping_test MemoryMapping.GiganticPagesWorkOrSayWhatIsMissing)

# recvmsg(2) does not say that descriptors did not fit (MSG_CTRUNC), sigaltstack(2) has no SS_AUTODISARM.
list(APPEND without_vhost_user_message_test
     VhostUserMessage.AsManyDescriptorsAsFitAreReceivedAndOneMoreIsCorrupt)
list(APPEND without_fault_guard_test FaultGuardTest.HandlersRunOnTheAlternateStack)

# userfaultfd(2) is missing, so that what else may be missing is not reached.
list(APPEND without_lazy_restore_calls_test Memory/LazyRestoreCalls.WithoutPagemapAndSys/*)

# /proc/self: what QEMU itself maps and opens is counted, too.
list(APPEND without_host_calls_test SystemCallFaults.MappingADevice SystemCallFaults.MappingEachBacking
     SystemCallFaults.MappingInAnArena)
list(APPEND without_memory_region_test
     MemoryRegion.OptionsThatAreNoEnumeratorsAreRefusedEvenWhereTheyDoNotMatter)
list(APPEND without_guest_memory_map_test GuestMemoryMap.ABackingTooShortForAllRegionsIsRefused)
list(APPEND without_handover_hostile_test HostileHandover.AlteredAnywhereItIsRefusedOrAGuest
     HostileHandover.DescriptorsThatAreNotAsAnnouncedAreRefused)

# QEMU keeps something for each mapping that has come and gone: more than 20 GB for all of these.
list(APPEND without_memory_blocks_model_test MemoryBlocksModel_RapidCheck.*)
list(APPEND without_vm_memory_leaks_test VmMemoryLeaks.CyclesOfChangesLeaveNothingBehind)
