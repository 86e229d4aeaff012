# Tests under valgrind's memcheck, which sees what the sanitizers can't: values that nobody has set, also
# where they reach a system call. `memcheck.<test>` is each test of GoogleTest cases but those that
# are left out below, built by the target memcheck_tests, and run by `ctest -C memcheck` (the preset
# valgrind) alone. What can tell by itself that something is missing skips with its reason instead.
#
# Left out are tests (without_memcheck) and cases (without_memcheck_<test>). Of labels: `client`, which
# starts other programs, and `stress`, since under valgrind only one thread runs at a time.

# They read the sources, and the library does nothing in them.
list(APPEND without_memcheck file_length_test layers_test readme_test security_test try_lint_test version_test)

# KVM: valgrind sees nothing of what a guest writes.
list(APPEND without_memcheck dirty_scan_kvm_test handover_kvm_test tiny_vm_test vm_memory_kvm_test)

# userfaultfd(2): a thread that waits for a page keeps valgrind from running the one that would bring it.
list(APPEND without_memcheck lazy_restore_calls_test lazy_restore_test live_snapshot_faults_test
     live_snapshot_test unplugged_blocks_test userfault_test)
list(APPEND without_memcheck_dirty_scan_test *WatchedRestore*)

# They repeat their changes so often that they take many minutes here.
list(APPEND without_memcheck vm_memory_leaks_test)
list(APPEND without_memcheck_resource_claim_test
     ResourceClaimText.AChangedByteIsAnErrorOrReadsAsClaimsThatReadBackAsTheyAre
     ResourceClaimText.LongHostileLinesAreErrorsLikeShortOnes)
list(APPEND without_memcheck_resource_manager_test
     ResourceHostileTest.ThousandsOfBridgesAndRangesAreAdoptedAndCheckedAndLetGo
     ResourceManagerTest.AListOfManyRequestsIsGivenBackWhenItsLastFails)

# What faults on purpose is an invalid access.
list(APPEND without_memcheck fault_guard_test)
list(APPEND without_memcheck_page_scan_test PageScanKinds.APageThatGoesBeforeItIsReadIsAnErrorAndNoSignal)

# Memory is valgrind's, of which mallinfo2(3) knows nothing, and which it maps as it likes.
list(APPEND without_memcheck_growth_test GrowthCheck.FindsMemoryThatIsNeverFreed)
list(APPEND without_memcheck_guest_memory_map_test GuestMemoryMap.ABackingTooShortForAllRegionsIsRefused)
list(APPEND without_memcheck_handover_hostile_test HostileHandover.IsRefusedWhereverItEnds
     HostileHandover.AlteredAnywhereItIsRefusedOrAGuest HostileHandover.NumbersThatMakeNoSenseAreRefused)

# A child that has forked leaks what is its parent's on purpose.
list(APPEND without_memcheck forked_child_test vm_forked_child_test)
list(APPEND without_memcheck_vhost_user_memory_log_test *IsNotTakenByAForkedChild*)

# It has descriptors of its own above the limit, and closes what lies there.
list(APPEND without_memcheck_handover_hostile_test HostileHandover.WithoutRoomForDescriptorsItIsRefused)

# mmap(2): 64 GiB and more are refused, with EINVAL, and MAP_FIXED_NOREPLACE is ignored.
list(APPEND without_memcheck_arena_test HostArena.BadOptionsAreErrors
     HostArena.HugetlbMemoryHasItsPlaceOrLeavesItReserved)
list(APPEND without_memcheck_memory_blocks_test
     MemoryBlocksTest.NoPatternOfBlocksTakesMoreMappingsThanThereAreSlots)
list(APPEND without_memcheck_memory_blocks_model_test MemoryBlocksModel_RapidCheck.EverythingAgreesWhateverFails)
list(APPEND without_memcheck_memory_mapping_test MemoryMapping.SizesAboveTheAddressSpaceAreErrors)
list(APPEND without_memcheck_host_calls_test SystemCallFaults.MappingADevice
     SystemCallFaults.MappingEachBacking SystemCallFaults.MappingInAnArena
     SystemCallFaults.WhatARegionIsToldBeforeItsFirstPage)

# valgrind reads the beginning of each file that is mapped, so that its pages are there.
list(APPEND without_memcheck_page_scan_test
     PageScanKinds.PresentPagesOfZerosAreFoundAndAbsentOnesStayAbsent
     PageScanKinds.WhatAnotherProcessWroteIsFound PageScanKinds.WhatWasWrittenIsFoundAndNothingIsMade
     PageScanKinds.WhereAKernelOrASandboxLacksOneMeansAnotherStandsIn)

find_program(VMSPACE_VALGRIND valgrind)
mark_as_advanced(VMSPACE_VALGRIND)
add_custom_target(memcheck_tests)

# vmspace_memcheck(<test> <program> SOURCES <source>... [LABELS <label>...])
function(vmspace_memcheck name program)
  cmake_parse_arguments(PARSE_ARGV 2 arg "" "" "LABELS;SOURCES")
  if(NOT VMSPACE_VALGRIND OR name IN_LIST without_memcheck OR "client" IN_LIST arg_LABELS OR "stress" IN_LIST arg_LABELS)
    return()
  endif()
  add_dependencies(memcheck_tests ${program})
  # Programs have an operator new of their own, which valgrind would replace.
  add_test(
    NAME memcheck.${name}
    COMMAND ${VMSPACE_VALGRIND} --quiet --error-exitcode=99 --leak-check=full --fair-sched=yes
            --soname-synonyms=somalloc=nouserintercepts
            --suppressions=${PROJECT_SOURCE_DIR}/tests/valgrind.supp $<TARGET_FILE:${program}> ${arg_SOURCES}
    CONFIGURATIONS memcheck)
  list(JOIN without_memcheck_${name} ":" cases)
  # Models take fewer steps: a program is some thirty times slower here.
  set_tests_properties(memcheck.${name} PROPERTIES LABELS memcheck TIMEOUT 1800 ENVIRONMENT
                                                      "GTEST_FILTER=-${cases};RC_PARAMS=max_success=5")
endfunction()
