# s3cache is one header: there is nothing to build before you use it. This file builds what is around it.
#
#   make            the offline tests (units, vectors, the fake S3), built and run; same as `make unit`
#   make test       all of them: also the conformance suite on a real Ceph, http and TLS, Python, README, examples
#   make demo       the command line at work, on the small S3 or with STORE=ceph; make examples   build/NAME of each example
#   make check      AddressSanitizer + UBSan, then ThreadSanitizer; make check-all  the whole matrix, takes long
#   make bench      speed;        make size   compile time and size; make fuzz      FUZZ_SECONDS=60 a target
#   make budget     what the header weighs against what it may: lines, instructions, compile time (tests/budget.txt)
#   make docs       HTML of the public half (doxygen);              make clean
#   make install    PREFIX=/usr/local DESTDIR=                      the header and a pkg-config file
#
# Variables: CXX (g++, clang++), STD=c++17, WERROR=1, V=1 (show commands), CXXFLAGS, CPPFLAGS, LDFLAGS, BUILD=build,
# ARGS (for the test program, as in `make unit ARGS='[sigv4]'`), S3CACHE_VECTORS=DIR of more test vectors.

BUILD ?= build
PREFIX ?= /usr/local
STD ?= c++17
FUZZ_SECONDS ?= 60
VERSION := $(shell sed -n 's/^.define S3CACHE_VERSION "\(.*\)".*/\1/p' s3cache.hpp)

# All cores, unless a number of jobs was given or an outer make hands them out.
ifeq ($(MAKELEVEL),0)
ifeq ($(filter -j%,$(MAKEFLAGS)),)
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 2)
endif
endif

WARNINGS := -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wold-style-cast -Wundef -Wcast-qual \
            -Wformat=2 -Wnull-dereference $(if $(WERROR),-Werror)
# Tests are compiled often and run once; examples and tools as a user would compile them.
TEST_OPT ?= -O0 -g1
TOOL_OPT ?= -O2 -g1
IS_CLANG := $(findstring clang,$(shell $(CXX) --version 2>/dev/null))
HAS_CATCH3 := $(wildcard $(addsuffix /catch2/catch_test_macros.hpp,/usr/include /usr/local/include $(CATCH2_INCLUDE)))
CATCH_LIBS ?= $(if $(HAS_CATCH3),$(or $(shell pkg-config --libs catch2-with-main 2>/dev/null),-lCatch2))
# CPPFLAGS come first so that another header can be put in front of this one.
COMPILE = $(CXX) -std=$(STD) $(CPPFLAGS) -I. -Itests $(if $(CATCH2_INCLUDE),-isystem $(CATCH2_INCLUDE)) $(WARNINGS) $(SANITIZE) \
          -MMD -MP -DS3CACHE_TEST_DIR='"$(CURDIR)/tests"'
# One short line a step, the whole command with V=1.
say = $(if $(V),,@echo '  $(1)  $@';)
LIBS = -lcurl -lcrypto -lz $(LDLIBS)
TEST_LIBS = $(CATCH_LIBS) -lssl $(LIBS) -lpthread

UNIT := $(wildcard tests/unit/*.cpp tests/faults/*.cpp) tests/main.cpp tests/fake_s3.cpp
CONFORMANCE := $(wildcard tests/conformance/*.cpp)
TESTS := $(UNIT) $(CONFORMANCE)
UNIT_OBJ := $(UNIT:tests/%.cpp=$(BUILD)/tests/%.o)
CONFORMANCE_OBJ := $(CONFORMANCE:tests/%.cpp=$(BUILD)/tests/%.o) $(addprefix $(BUILD)/tests/,main.o fake_s3.o)
FAKE_OBJ := $(addprefix $(BUILD)/tests/,fake_s3.o fake_s3_main.o)
# s3cache_cli.cpp is built under the name that users type.
EXAMPLES := $(patsubst s3cache_cli,s3cache,$(basename $(notdir $(wildcard examples/*.cpp))))
FUZZERS := $(basename $(notdir $(wildcard tests/fuzz/*.cpp)))

.DEFAULT_GOAL := unit
.PHONY: unit test demo bench fuzz check check-all size budget docs install examples clean programs test-programs print-test-libs
.DELETE_ON_ERROR:
.SECONDARY:

# ---------------------------------------------------------------- the precompiled header of the tests

# Catch2 and s3cache.hpp are most of what compiling a test costs. Files that must see the header on its own terms do without:
# those that set a macro before it, those that say `pch: no`, and those that don't include it. Of the others those that name
# nothing of the inner half see only the public one (S3CACHE_DECLARATIONS_ONLY); its functions are compiled once for all of them.
IS_PCH := pch.hpp.$(if $(IS_CLANG),pch,gch)
NO_PCH := tests/main.cpp $(wildcard tests/fake_s3*.cpp) \
          $(shell grep -lsE 'pch: no|define (S3CACHE_DECLARATIONS_ONLY|S3CACHE_IMPLEMENTATION|S3CACHE_NO_)' $(TESTS) /dev/null)
INNER := $(shell grep -lsE 'detail::|"(gzip_tools|vectors)\.hpp"|"fuzz/' $(TESTS) /dev/null)
objects = $(patsubst tests/%.cpp,$(BUILD)/tests/%.o,$(filter-out $(NO_PCH),$(1)))
FUNCTIONS := $(BUILD)/tests/functions.o

$(BUILD)/inner/$(IS_PCH) $(BUILD)/public/$(IS_PCH): s3cache.hpp tests/catch.hpp Makefile
	@mkdir -p $(@D)
	@printf '#include "catch.hpp"\n#include "s3cache.hpp"\n' >$(@D)/pch.hpp
	$(call say,header )$(COMPILE) $(TEST_OPT) $(MODE) $(CXXFLAGS) -c -x c++-header $(@D)/pch.hpp -o $@
$(BUILD)/public/$(IS_PCH) $(call objects,$(filter-out $(INNER),$(TESTS))) $(FUNCTIONS): MODE = -DS3CACHE_DECLARATIONS_ONLY
$(call objects,$(filter $(INNER),$(TESTS))): USE_PCH = -Winvalid-pch -include $(BUILD)/inner/pch.hpp
$(call objects,$(filter $(INNER),$(TESTS))): $(BUILD)/inner/$(IS_PCH)
$(call objects,$(filter-out $(INNER),$(TESTS))): USE_PCH = -Winvalid-pch -include $(BUILD)/public/pch.hpp
$(call objects,$(filter-out $(INNER),$(TESTS))): $(BUILD)/public/$(IS_PCH)
$(FUNCTIONS): tests/split/impl.cpp Makefile | $(BUILD)/tests
	$(call say,compile)$(COMPILE) $(TEST_OPT) $(MODE) $(CXXFLAGS) -c $< -o $@

# ---------------------------------------------------------------- programs

$(BUILD)/tests $(BUILD)/fuzz:
	@mkdir -p $@

$(BUILD)/tests/%.o: tests/%.cpp Makefile | $(BUILD)/tests
	@mkdir -p $(@D)
	$(call say,compile)$(COMPILE) $(TEST_OPT) $(MODE) $(USE_PCH) $(CXXFLAGS) -c $< -o $@

$(BUILD)/unit: $(UNIT_OBJ) $(FUNCTIONS)
	$(call say,link   )$(CXX) $(SANITIZE) $(LDFLAGS) $^ -o $@ $(TEST_LIBS)

$(BUILD)/conformance: $(CONFORMANCE_OBJ) $(FUNCTIONS)
	$(call say,link   )$(CXX) $(SANITIZE) $(LDFLAGS) $^ -o $@ $(TEST_LIBS)

$(BUILD)/fake_s3: $(FAKE_OBJ)
	$(call say,link   )$(CXX) $(SANITIZE) $(LDFLAGS) $^ -o $@ $(TEST_LIBS)

$(BUILD)/s3cache: examples/s3cache_cli.cpp Makefile | $(BUILD)/tests
	$(call say,compile)$(COMPILE) $(TOOL_OPT) $(CXXFLAGS) $(LDFLAGS) $< -o $@ $(LIBS)

$(addprefix $(BUILD)/,$(filter-out s3cache,$(EXAMPLES))): $(BUILD)/%: examples/%.cpp Makefile | $(BUILD)/tests
	$(call say,compile)$(COMPILE) $(TOOL_OPT) $(CXXFLAGS) $(LDFLAGS) $< -o $@ $(LIBS)

$(BUILD)/stampede_worker: tests/stampede/worker.cpp Makefile | $(BUILD)/tests
	$(call say,compile)$(COMPILE) $(TEST_OPT) $(CXXFLAGS) $(LDFLAGS) $< -o $@ $(LIBS)

examples: $(addprefix $(BUILD)/,$(EXAMPLES))
print-test-libs:
	@echo '$(TEST_LIBS)'
test-programs: $(BUILD)/unit $(BUILD)/conformance
# The examples are compiled by a suite of their own (python/readme.py).
programs: test-programs $(BUILD)/fake_s3 $(BUILD)/stampede_worker $(BUILD)/s3cache

# ---------------------------------------------------------------- what one types

# Each looks first for what it needs. `make unit` only says what is missing; test, demo and bench install it.
unit:
	@tests/setup.sh --check unit
	@$(MAKE) --no-print-directory $(BUILD)/unit
	$(BUILD)/unit $(ARGS)

test:
	@tests/setup.sh test
	@$(MAKE) --no-print-directory programs
	@BUILD=$(BUILD) CXX='$(CXX)' tests/run.sh

demo:
	@BUILD=$(BUILD) CXX='$(CXX)' STORE='$(STORE)' tests/demo.sh

bench:
	@tests/setup.sh bench
	@$(MAKE) --no-print-directory $(BUILD)/s3cache $(BUILD)/fake_s3
	@BUILD=$(BUILD) CXX='$(CXX)' tests/bench/run.sh

size:
	@CXX='$(CXX)' tests/size.sh

budget:
	@tests/setup.sh budget
	@$(MAKE) --no-print-directory $(BUILD)/fake_s3
	@BUILD=$(BUILD) CXX='$(CXX)' tests/budget.py $(ARGS)

check-all:
	@tests/check_all.sh

# Leaks count too. One after the other: each of the two wants the machine's memory for itself.
check:
	@tests/setup.sh --check unit
	@$(MAKE) --no-print-directory BUILD=$(BUILD)/asan SANITIZE='-fsanitize=address,undefined -fno-sanitize-recover=all \
	    -fno-omit-frame-pointer' TEST_OPT='-O1 -g1' test-programs
	$(BUILD)/asan/unit $(ARGS)
	env -u S3CACHE_TEST_ENDPOINT $(BUILD)/asan/conformance $(ARGS)
	@$(MAKE) --no-print-directory BUILD=$(BUILD)/tsan SANITIZE='-fsanitize=thread' TEST_OPT='-O1 -g1' test-programs
	$(BUILD)/tsan/unit $(ARGS)
	env -u S3CACHE_TEST_ENDPOINT $(BUILD)/tsan/conformance $(ARGS)

# ---------------------------------------------------------------- fuzzing (clang only)

FUZZ_CXX ?= $(if $(IS_CLANG),$(CXX),clang++)

$(BUILD)/fuzz/%: tests/fuzz/%.cpp Makefile | $(BUILD)/fuzz
	$(call say,compile)$(subst $(CXX) ,$(FUZZ_CXX) ,$(COMPILE)) -O1 -g1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all $< -o $@ $(LIBS)

# New finds go to the build directory; tests/fuzz/corpus holds what the tests replay.
fuzz: $(addprefix $(BUILD)/fuzz/,$(FUZZERS))
	@set -e; for f in $(FUZZERS); do \
	    mkdir -p $(BUILD)/fuzz/found/$$f; echo "== $$f, $(FUZZ_SECONDS) s"; \
	    known=tests/fuzz/corpus/$$f; [ -d $$known ] || known=; \
	    $(BUILD)/fuzz/$$f -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 -artifact_prefix=$(BUILD)/fuzz/$$f- \
	        $(BUILD)/fuzz/found/$$f $$known; done

# ---------------------------------------------------------------- install, docs, clean

install:
	install -d '$(DESTDIR)$(PREFIX)/include' '$(DESTDIR)$(PREFIX)/share/pkgconfig'
	install -m 644 s3cache.hpp '$(DESTDIR)$(PREFIX)/include/s3cache.hpp'
	printf '%s\n' 'prefix=$(PREFIX)' 'includedir=$${prefix}/include' '' 'Name: s3cache' \
	    'Description: S3 as a cache, in one C++17 header' 'Version: $(VERSION)' 'Requires: libcurl libcrypto zlib' \
	    'Cflags: -I$${includedir}' >'$(DESTDIR)$(PREFIX)/share/pkgconfig/s3cache.pc'

docs:
	@tests/setup.sh docs
	@mkdir -p $(BUILD)/docs
	@printf '%s\n' 'PROJECT_NAME=s3cache' 'PROJECT_NUMBER=$(VERSION)' 'INPUT=s3cache.hpp' 'OUTPUT_DIRECTORY=$(BUILD)/docs' \
	    'GENERATE_LATEX=NO' 'EXTRACT_ALL=YES' 'EXCLUDE_SYMBOLS=*detail*' 'QUIET=YES' 'WARN_AS_ERROR=FAIL_ON_WARNINGS' \
	    'MACRO_EXPANSION=YES' 'EXPAND_ONLY_PREDEF=YES' 'PREDEFINED=S3CACHE_FN:= S3CACHE_EXCEPTIONS:=1 S3CACHE_DECLARATIONS_ONLY=1 S3CACHE_ABI:=v0' \
	    'WARN_IF_UNDOCUMENTED=NO' 'HAVE_DOT=NO' 'TAB_SIZE=4' | doxygen -
	@echo '$(BUILD)/docs/html/index.html'

clean:
	rm -rf $(BUILD)

-include $(wildcard $(BUILD)/*.d $(BUILD)/tests/*.d $(BUILD)/tests/*/*.d $(BUILD)/fuzz/*.d)
