// Preloaded in front of today's libcurl: one that says it is 7.61 and knows no option that came later. For 64-bit machines where
// variadic arguments go the way of named ones, as on x86-64 Linux.
#include <cstdarg>
#include <dlfcn.h>

#include <curl/curl.h>

#undef curl_easy_setopt

extern "C" {

curl_version_info_data* curl_version_info(CURLversion age) {
    using Function = curl_version_info_data* (*)(CURLversion);
    static const auto real = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "curl_version_info"));
    static curl_version_info_data old = *real(age);
    old.age = CURLVERSION_FOURTH;
    old.version = "7.61.0";
    old.version_num = 0x073D00;
    return &old;
}

CURLcode curl_easy_setopt(CURL* handle, CURLoption option, ...) {
    using Function = CURLcode (*)(CURL*, CURLoption, ...);
    static const auto real = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "curl_easy_setopt"));
    if (option % 10000 > 278) return CURLE_UNKNOWN_OPTION;
    va_list arguments;
    va_start(arguments, option);
    void* const value = va_arg(arguments, void*);
    va_end(arguments);
    return real(handle, option, value);
}
}
