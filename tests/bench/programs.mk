# The programs of `make bench`; run.sh adds this file to the Makefile.
BENCH := $(addprefix $(BUILD)/bench/,bench link one one_bare)
bench-programs: $(BENCH)

$(BUILD)/bench:
	@mkdir -p $@

$(BUILD)/bench/one_bare: tests/bench/one.cpp Makefile | $(BUILD)/bench
	$(call say,compile)$(COMPILE) -DBENCH_BARE $(TOOL_OPT) $(CXXFLAGS) $(LDFLAGS) $< -o $@ -lcurl -lcrypto

$(BUILD)/bench/libs3_rows: LIBS = -ls3
$(BUILD)/bench/%: tests/bench/%.cpp Makefile | $(BUILD)/bench
	$(call say,compile)$(COMPILE) $(TOOL_OPT) $(CXXFLAGS) $(LDFLAGS) $< -o $@ $(LIBS)

-include $(wildcard $(BUILD)/bench/*.d)
