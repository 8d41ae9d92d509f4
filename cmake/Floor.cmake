# fulmen_floor(NAME SOURCES... LINKS lower floors and libraries...): the library of one folder, static, or shared with
# BUILD_SHARED_LIBS (which keeps many programs with CUDA code small).
# Headers that most files include are compiled once for a target that has many: for fewer it costs more than it saves. Files
# include what they use all the same: the presets debug and asan build without.
function(fulmen_precompile target)
  get_target_property(sources ${target} SOURCES)
  list(LENGTH sources count)
  if(count LESS 8)
    return()
  endif()
  set(headers fmt/format.h algorithm cstdint filesystem functional map memory optional ranges string vector ${ARGN})
  list(TRANSFORM headers REPLACE ".+" "$<$<COMPILE_LANGUAGE:CXX>:<\\0$<ANGLE-R>>")
  target_precompile_headers(${target} PRIVATE ${headers})
endfunction()

# Code that no run waits for: optimising it takes longer than it will ever save.
set(cold_options $<$<AND:$<CONFIG:Release>,$<COMPILE_LANGUAGE:CXX>>:-O1>)
function(compile_cold target)
  target_compile_options(${target} PRIVATE ${cold_options})
endfunction()
function(compile_cold_sources)
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "${cold_options}")
endfunction()

function(fulmen_floor name)
  cmake_parse_arguments(FLOOR "" "" "SOURCES;LINKS;PRIVATE_LINKS" ${ARGN})
  add_library(fulmen_${name} ${FLOOR_SOURCES})
  target_include_directories(fulmen_${name} PUBLIC ${CMAKE_SOURCE_DIR})
  target_link_libraries(fulmen_${name} PUBLIC fulmen_options ${FLOOR_LINKS} PRIVATE ${FLOOR_PRIVATE_LINKS})
  fulmen_precompile(fulmen_${name})
endfunction()

# Flags that every target shares. No -march: one binary serves any x86-64, kernels choose their path at run time.
add_library(fulmen_options INTERFACE)
target_compile_options(fulmen_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wno-unknown-pragmas>)
# nvcc's front end cannot check fmt's format strings while it compiles.
target_compile_definitions(fulmen_options INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:FMT_CONSTEVAL=>
                           $<$<COMPILE_LANGUAGE:CUDA>:FMT_USE_CONSTEXPR=1>)
if(FULMEN_SANITIZE)
  target_compile_options(fulmen_options INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
  target_link_options(fulmen_options INTERFACE -fsanitize=address,undefined)
endif()
