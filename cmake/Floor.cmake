# fulmen_precompiled(NAME LINKS libraries... [HEADERS more...]): headers that most files include, compiled once for all targets
# that are compiled alike.
# Files include what they use all the same: the preset debug builds without.
function(fulmen_precompiled name)
  cmake_parse_arguments(COMMON "" "" "HEADERS;LINKS" ${ARGN})
  file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/${name}.cpp CONTENT "// Headers only.\n")
  add_library(${name} OBJECT ${CMAKE_CURRENT_BINARY_DIR}/${name}.cpp)
  target_link_libraries(${name} PRIVATE fulmen_options ${COMMON_LINKS})
  set(headers fmt/format.h algorithm cstdint filesystem functional map memory optional ranges string vector ${COMMON_HEADERS})
  list(TRANSFORM headers REPLACE ".+" "$<$<COMPILE_LANGUAGE:CXX>:<\\0$<ANGLE-R>>")
  target_precompile_headers(${name} PRIVATE ${headers})
endfunction()

# Code that no run waits for: optimising it takes longer than it will ever save.
set(cold_options $<$<AND:$<CONFIG:Release>,$<COMPILE_LANGUAGE:CXX>>:-O1>)
function(compile_cold target)
  target_compile_options(${target} PRIVATE ${cold_options})
endfunction()
function(compile_cold_sources)
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "${cold_options}")
endfunction()

# fulmen_floor(NAME SOURCES... LINKS lower floors and libraries...): the library of one folder, static, or shared with
# BUILD_SHARED_LIBS (which keeps many programs with CUDA code small).
function(fulmen_floor name)
  cmake_parse_arguments(FLOOR "" "" "SOURCES;LINKS;PRIVATE_LINKS" ${ARGN})
  add_library(fulmen_${name} ${FLOOR_SOURCES})
  target_include_directories(fulmen_${name} PUBLIC ${CMAKE_SOURCE_DIR})
  target_link_libraries(fulmen_${name} PUBLIC fulmen_options ${FLOOR_LINKS} PRIVATE ${FLOOR_PRIVATE_LINKS})
  set(headers fulmen_headers)
  set(compiled_with fmt::fmt)
  if("OpenMP::OpenMP_CXX" IN_LIST FLOOR_PRIVATE_LINKS)
    set(headers fulmen_openmp_headers)
    list(APPEND compiled_with OpenMP::OpenMP_CXX)
  endif()
  if(NOT TARGET ${headers})
    fulmen_precompiled(${headers} LINKS ${compiled_with})
    set_target_properties(${headers} PROPERTIES POSITION_INDEPENDENT_CODE "${BUILD_SHARED_LIBS}")
  endif()
  target_precompile_headers(fulmen_${name} REUSE_FROM ${headers})
  if(BUILD_SHARED_LIBS)
    install(TARGETS fulmen_${name} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
  endif()
endfunction()

# Flags that every target shares. No -march: one binary serves any x86-64, kernels choose their path at run time.
add_library(fulmen_options INTERFACE)
target_compile_options(fulmen_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wno-unknown-pragmas>)
# These keep loops with square roots and comparisons from vectorising; neither changes a result. For all targets: headers that
# are compiled once are good only for those that are compiled alike.
target_compile_options(fulmen_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fno-math-errno -fno-trapping-math>)
# nvcc's front end cannot check fmt's format strings while it compiles.
target_compile_definitions(fulmen_options INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:FMT_CONSTEVAL=>
                           $<$<COMPILE_LANGUAGE:CUDA>:FMT_USE_CONSTEXPR=1>)
if(FULMEN_SANITIZE)
  target_compile_options(fulmen_options INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
  target_link_options(fulmen_options INTERFACE -fsanitize=address,undefined)
endif()
