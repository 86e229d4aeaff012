# How our own targets (library, tests, examples, benchmarks) are compiled. Nothing here reaches a
# target that merely links vmspace.

# Sanitizer and compiler presets build much of the same twice over a day: ccache remembers.
find_program(VMSPACE_CCACHE ccache)
mark_as_advanced(VMSPACE_CCACHE)
if(PROJECT_IS_TOP_LEVEL AND VMSPACE_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${VMSPACE_CCACHE}")
endif()

if(VMSPACE_SANITIZE)
  # Frame pointers make the reports readable.
  add_compile_options(-fsanitize=${VMSPACE_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${VMSPACE_SANITIZE})
  # Checks of every access through a pointer: g++ takes a fifth longer to compile with them, clang, which
  # makes the same ones, hardly any.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND VMSPACE_SANITIZE MATCHES "undefined")
    add_compile_options(-fno-sanitize=null,alignment,vptr)
  endif()
endif()

if(VMSPACE_COVERAGE)
  # Threads count too, and none of their counts may be lost.
  add_compile_options(--coverage -fprofile-update=atomic)
  add_link_options(--coverage)
endif()

# vmspace_own_target(<target>): the warnings that our own code is kept free of.
function(vmspace_own_target target)
  target_compile_features(${target} PRIVATE cxx_std_20)
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wconversion -Wshadow -Wnon-virtual-dtor)
  # g++ 12 sees uninitialised values that are not there: in what the sanitizers insert (GCC bug 105562,
  # in std::regex among others), and at -O3 in copies of a temporary Error across many inlined calls.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(${target} PRIVATE -Wno-maybe-uninitialized)
  endif()
  if(VMSPACE_WARNINGS_AS_ERRORS)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
endfunction()
