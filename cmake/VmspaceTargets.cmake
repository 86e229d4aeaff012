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

# vmspace_unity_build(<target> <number>): compiled in units of so many sources where VMSPACE_UNITY_BUILD says
# so, otherwise as CMAKE_UNITY_BUILD says for all that a user builds.
function(vmspace_unity_build target sources)
  if(VMSPACE_UNITY_BUILD)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE ${sources})
  endif()
endfunction()

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

# vmspace_precompile(<name> LINK <target>... HEADERS <header>...)
# Headers that many programs of ours include, parsed once for those that name it with REUSE_FROM and link the
# same. Who edits a header and builds a program or two is better off without it:
# -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON.
function(vmspace_precompile name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "LINK;HEADERS")
  file(CONFIGURE OUTPUT ${name}.cpp CONTENT "// Only to precompile headers.\n")
  add_library(${name} OBJECT "${CMAKE_CURRENT_BINARY_DIR}/${name}.cpp")
  vmspace_own_target(${name})
  target_link_libraries(${name} PRIVATE ${arg_LINK})
  target_precompile_headers(${name} PRIVATE ${arg_HEADERS})
  # The command that precompiles a header also includes it. Where an older result lies there, ccache takes that for the
  # input, and does not look at the headers: build trees with a cache in common would get each other's. In this mode it
  # goes by the dependencies that the compiler lists, which are the headers.
  if(VMSPACE_CCACHE AND CMAKE_CXX_COMPILER_LAUNCHER STREQUAL VMSPACE_CCACHE)
    set_target_properties(${name} PROPERTIES CXX_COMPILER_LAUNCHER
                                             "${CMAKE_COMMAND};-E;env;CCACHE_DEPEND=1;${VMSPACE_CCACHE}")
  endif()
  if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang") # the same again from the same headers, for ccache
    target_compile_options(${name} PRIVATE "SHELL:-Xclang -fno-pch-timestamp")
  endif()
endfunction()
