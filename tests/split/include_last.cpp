// Behind whatever else a program includes, libraries of the implementation among them.
#include <algorithm>
#include <cmath>
#include <complex>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <future>
#include <iostream>
#include <map>
#include <regex>
#include <thread>

#include <arpa/nameser.h>
#include <curl/curl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <resolv.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <syslog.h>
#include <termios.h>
#include <zlib.h>

using namespace std;  // what others do in their headers

#include "s3cache.hpp"

int main() { return s3cache::Cache::try_open("not a bucket") ? 1 : 0; }
