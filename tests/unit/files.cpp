// Section files. What get_file and set_file make of it is tested in faults/files.cpp.
#include "s3cache.hpp"

#include "catch.hpp"
#include "store.hpp"

#include <filesystem>

namespace files = s3cache::detail::files;
using files::NewFile;
using s3cache::Source;
using std::filesystem::create_directory;
using std::filesystem::create_symlink;

namespace {

std::string drained(Source source) {
    std::string out;
    char buffer[7];
    for (;;) {
        const std::size_t count = source.read(buffer, sizeof buffer);
        if (count == s3cache::source_failed) return out + " and failed";
        if (count == 0) return out;
        out.append(buffer, count);
    }
}

}  // namespace

TEST_CASE("files: a new file takes its target's place when it is whole, and not before") {
    store::Folder folder;
    const std::string target = folder / "target";
    store::write(target, "old");
    NewFile out(target);
    REQUIRE(out.open("id"));
    CHECK(folder.count() == 2);
    REQUIRE(out.write("ne"));
    REQUIRE(out.write("w"));
    CHECK(store::contents(target) == "old");
    REQUIRE(out.commit());
    CHECK(store::contents(target) == "new");
    CHECK(folder.count() == 1);
}

TEST_CASE("files: one that is given up leaves the target, and nothing beside it") {
    store::Folder folder;
    const std::string target = folder / "target";
    store::write(target, "old");
    {
        NewFile out(target);
        REQUIRE(out.open("id"));
        REQUIRE(out.write("new"));
    }
    CHECK(store::contents(target) == "old");
    CHECK(folder.count() == 1);
}

TEST_CASE("files: two that are written at once do not meet") {
    store::Folder folder;
    const std::string target = folder / "target";
    NewFile one(target), other(target);
    REQUIRE(one.open("1"));
    REQUIRE(other.open("2"));
    REQUIRE(one.write("one"));
    REQUIRE(other.write("other"));
    REQUIRE(other.commit());
    CHECK(store::contents(target) == "other");
    REQUIRE(one.commit());
    CHECK(store::contents(target) == "one");
    CHECK(folder.count() == 1);
}

TEST_CASE("files: what cannot be created or replaced is an error that names it, and nothing is left") {
    store::Folder folder;
    const std::string target = folder / "target";
    NewFile nowhere(folder / "none" + "/file");
    const auto opened = nowhere.open("id");
    REQUIRE_FALSE(opened);
    CHECK(std::string(opened.error().what()).find("cannot create '" + folder / "none") != std::string::npos);
    {
        NewFile out(target);
        REQUIRE(out.open("id"));
        REQUIRE(create_directory(target));
        const auto committed = out.commit();
        REQUIRE_FALSE(committed);
        CHECK(std::string(committed.error().what()).find("cannot replace '" + target + "'") != std::string::npos);
    }
    CHECK(folder.count() == 1);
}

TEST_CASE("files: links are followed to the file that is replaced, but not in a circle") {
    store::Folder folder;
    REQUIRE(create_directory(folder / "sub"));
    create_symlink("sub/second", folder / "first");
    create_symlink("file", folder / "sub/second");
    NewFile out(folder / "first");
    REQUIRE(out.open("id"));
    REQUIRE(out.write("v"));
    REQUIRE(out.commit());
    CHECK(store::contents(folder / "sub/file") == "v");
    CHECK(std::filesystem::is_symlink(folder / "first"));
    create_symlink("circle", folder / "circle");
    NewFile endless(folder / "circle");
    const auto opened = endless.open("id");
    REQUIRE_FALSE(opened);
    CHECK(std::string(opened.error().what()).find("cannot follow '" + folder / "circle") != std::string::npos);
}

TEST_CASE("files: a source tells the length of a plain file, and fails if that is written to meanwhile") {
    store::Folder folder;
    const std::string path = folder / "in";
    store::write(path, "0123456789");
    CHECK(drained(files::source_of(files::open_file(path.c_str(), "rb"))) == "0123456789");
    CHECK(files::source_of(files::open_file(path.c_str(), "rb")).size() == 10u);
    CHECK(drained(files::source_of(nullptr)) == " and failed");
    Source source = files::source_of(files::open_file(path.c_str(), "rb"));
    store::write(path, "longer than it was");
    CHECK(drained(std::move(source)).find(" and failed") != std::string::npos);
}
