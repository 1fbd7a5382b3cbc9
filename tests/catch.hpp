// Catch2 in whichever version is installed: 3 splits its headers, 2 (Debian 12, Ubuntu 22.04) has one.
#pragma once

#if __has_include(<catch2/catch_test_macros.hpp>)
#include <catch2/catch_message.hpp>
#include <catch2/catch_session.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>  // GENERATE
#include <catch2/matchers/catch_matchers.hpp>      // CHECK_THROWS_WITH
#else
#include <new>  // std::nothrow, which it names and does not include

#include <catch2/catch.hpp>
#endif
