# For another machine than this one, with Debian's cross compiler for it; what was built runs under
# QEMU's user mode, which CTest is told here. VMSPACE_CROSS_MACHINE says which: aarch64, s390x.
#
#   cmake --workflow --preset aarch64        (after `sh cmake/bootstrap.sh aarch64`, or by it)
#
# Of the machine's libraries libc and libstdc++ come with the compiler. Those that have compiled parts
# (fmt, GoogleTest, RapidCheck) are searched in CMAKE_FIND_ROOT_PATH, where the bootstrap script
# unpacks Debian's packages for that machine; libraries of headers alone are this machine's own.

set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES VMSPACE_CROSS_MACHINE)

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR ${VMSPACE_CROSS_MACHINE})
set(CMAKE_LIBRARY_ARCHITECTURE ${VMSPACE_CROSS_MACHINE}-linux-gnu)
set(CMAKE_CXX_COMPILER ${CMAKE_LIBRARY_ARCHITECTURE}-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-${VMSPACE_CROSS_MACHINE} -L /usr/${CMAKE_LIBRARY_ARCHITECTURE})

set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
