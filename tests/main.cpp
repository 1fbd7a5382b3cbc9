// The test program. With Catch2 3 the session comes from its library, with 2 it is compiled here.
#define CATCH_CONFIG_RUNNER
#include "catch.hpp"

int main(int argc, char* argv[]) { return Catch::Session().run(argc, argv); }
