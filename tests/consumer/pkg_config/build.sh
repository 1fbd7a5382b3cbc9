#!/bin/sh
# PKG_CONFIG_PATH says where s3cache.pc is; $1 is the program to write.
set -eu
exec ${CXX:-c++} -std=c++17 "$(dirname "$0")/../app.cpp" $(pkg-config --cflags s3cache) -o "$1" $(pkg-config --libs s3cache)
