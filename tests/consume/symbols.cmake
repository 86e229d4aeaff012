# cmake -D nm=... -D library=... -D users=... -P symbols.cmake
#
# Looks at what the shared library shows: that it is only vmspace, nothing private but what is listed
# here, and all that the objects named in the file `users` need.

cmake_minimum_required(VERSION 3.22)

# What inline functions of the headers call out of line.
set(private
    vmspace::detail::TranslationTable::empty # of a GuestMemory that has no memory
    vmspace::detail::index_error # of an element of a GuestRef
    vmspace::detail::pin_object # GuestPtr::pin, for any type
    vmspace::detail::move_atomically # how guest memory is copied and filled under ThreadSanitizer
    vmspace::detail::fill_atomically
    vmspace::detail::load_words # what guest memory is copied by where the size is not a constant
    vmspace::detail::store_words)

# symbols(<variable> <flag>...): the names that nm lists, sorted.
function(symbols variable)
  execute_process(COMMAND "${nm}" --format=posix ${ARGN} OUTPUT_VARIABLE lines COMMAND_ERROR_IS_FATAL ANY)
  # A list of CMake has no element with one of these alone.
  string(REGEX REPLACE "[][;]" "_" lines "${lines}")
  string(REPLACE "\n" ";" lines "${lines}")
  list(FILTER lines INCLUDE REGEX " [A-Za-z][ 0-9a-f]*$")
  list(TRANSFORM lines REPLACE " [A-Za-z][ 0-9a-f]*$" "")
  list(REMOVE_DUPLICATES lines)
  list(SORT lines)
  set(${variable} "${lines}" PARENT_SCOPE)
endfunction()

symbols(shown --dynamic --defined-only "${library}")
symbols(shown_names --dynamic --defined-only --demangle "${library}")
list(LENGTH shown count)
message(STATUS "${count} symbols")
if(NOT "${shown_names}" MATCHES "vmspace::GuestMemory::map\\(")
  message(SEND_ERROR "GuestMemory::map is not visible")
endif()
foreach(name IN LISTS shown_names)
  # What a class with virtual functions has is as visible as the class.
  string(REGEX REPLACE "^(vtable|typeinfo|typeinfo name) for " "" name "${name}")
  if(NOT name MATCHES "^vmspace::")
    message(SEND_ERROR "not of vmspace, and visible: ${name}")
  elseif(name MATCHES "^vmspace::detail::")
    string(REGEX MATCH "^[A-Za-z_:]+" name "${name}")
    if(NOT name IN_LIST private)
      message(SEND_ERROR "private, and visible: ${name}")
    endif()
  endif()
endforeach()

# Programs are linked to the static library in most builds, where a mark that is missing does not show.
symbols(all --defined-only "${library}")
symbols(needed --undefined-only "@${users}")
list(REMOVE_ITEM all ${shown})
list(FILTER needed INCLUDE REGEX vmspace)
foreach(name IN LISTS needed)
  if(name IN_LIST all)
    message(SEND_ERROR "needed, and hidden: ${name}")
  endif()
endforeach()
