// SPDX-License-Identifier: Apache-2.0
// The format to the byte: what must be accepted, what must be refused and with which words, what is written, and that
// neither a damaged file nor a full disk leaves anything but an Error.
#include "runtime/checkpoint/safetensors.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "tests/support/files.hpp"

namespace cadre::safetensors_test {
namespace {

using test::error_of;
using test::read_file;
using test::TemporaryDirectory;
using test::write_file;
using testing::AllOf;
using testing::HasSubstr;

std::string length_prefix(uint64_t bytes) {
  std::string text(sizeof bytes, '\0');
  std::memcpy(text.data(), &bytes, sizeof bytes);
  return text;
}

std::string file_of(const std::string& header, size_t data_bytes) {
  return length_prefix(header.size()) + header + std::string(data_bytes, '\0');
}

const std::string kGoodHeader = R"({"test":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]}})";

// One tensor "x" with this dtype, shape and data_offsets, as JSON.
std::string one_tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"x":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}

class SafetensorsTest : public testing::Test {
 protected:
  SafetensorsReader open(const std::string& content) {
    write_file(path_, content);
    return SafetensorsReader(path_);
  }
  std::string error_for(const std::string& content) {
    const std::string text = error_of([&] { open(content); });
    EXPECT_THAT(text, HasSubstr(path_.string()));
    return text;
  }
  std::string header_error(const std::string& header, size_t data_bytes = 0) {
    return error_for(file_of(header, data_bytes));
  }

  TemporaryDirectory directory_;
  std::filesystem::path path_ = directory_ / "model.safetensors";
};

TEST_F(SafetensorsTest, ReadsTheCanonicalFile) {
  std::string content = file_of(kGoodHeader, 16);
  ASSERT_EQ(content.size(), 84U);
  content[68] = 1;  // the first element
  const SafetensorsReader reader = open(content);
  ASSERT_EQ(reader.entries().size(), 1U);
  const TensorEntry* entry = reader.find("test");
  ASSERT_NE(entry, nullptr);
  EXPECT_EQ(entry->dtype_name, "I32");
  EXPECT_EQ(entry->dtype, DType::i32);
  EXPECT_EQ(entry->shape, (std::vector<int64_t>{2, 2}));
  ASSERT_EQ(reader.bytes(*entry).size(), 16U);
  EXPECT_EQ(reader.bytes(*entry)[0], std::byte{1});
  EXPECT_EQ(reader.bytes(*entry)[1], std::byte{0});
  EXPECT_EQ(reader.find("tes"), nullptr);
  EXPECT_TRUE(reader.metadata().empty());
}

TEST_F(SafetensorsTest, AcceptsWhatTheFormatAllows) {
  EXPECT_TRUE(open(file_of("{}\r \t\n", 0)).entries().empty());
  EXPECT_TRUE(open(file_of("\t\n{}\r ", 0)).entries().empty());
  EXPECT_TRUE(open(file_of("{}", 0)).entries().empty());
  EXPECT_EQ(open(file_of(one_tensor(R"("F64")", "[]", "[0,8]"), 8)).entries()[0].shape.size(), 0U);
  EXPECT_EQ(open(file_of(one_tensor(R"("F32")", "[2,0]", "[0,0]"), 0)).entries()[0].bytes(), 0U);
  EXPECT_EQ(open(file_of(R"({"__metadata__":{"a":"b\n","format":"pt"}})", 0)).metadata().at("a"), "b\n");
}

TEST_F(SafetensorsTest, OrdersEntriesByTheirData) {
  const SafetensorsReader reader = open(file_of(R"({"late":{"dtype":"U8","shape":[3],"data_offsets":[2,5]},)"
                                                R"("early":{"dtype":"F8_E5M2","shape":[2],"data_offsets":[0,2]},)"
                                                R"("none":{"dtype":"F32","shape":[0],"data_offsets":[2,2]}})",
                                                5));
  ASSERT_EQ(reader.entries().size(), 3U);
  EXPECT_EQ(reader.entries()[0].name, "early");
  EXPECT_EQ(reader.entries()[1].name, "none");
  EXPECT_EQ(reader.entries()[2].name, "late");
  EXPECT_EQ(reader.find("late"), &reader.entries()[2]);
  EXPECT_EQ(reader.entries()[0].dtype_name, "F8_E5M2");
  EXPECT_EQ(reader.entries()[0].dtype, std::nullopt);
}

TEST_F(SafetensorsTest, RefusesABadHeaderLength) {
  EXPECT_THAT(error_for(""), HasSubstr("has 0 bytes"));
  EXPECT_THAT(error_for("1234567"), HasSubstr("has 7 bytes"));
  EXPECT_THAT(error_for(std::string("<\0\0\0\0\0\0\0", 8)), HasSubstr("header of 60 bytes but has only 8"));
  EXPECT_THAT(error_for(length_prefix(1000) + "{}"), HasSubstr("header of 1000 bytes but has only 10"));
  EXPECT_THAT(error_for(length_prefix(0xffffff000000003cU) + kGoodHeader), HasSubstr("the limit is 100000000"));
  EXPECT_THAT(error_for(length_prefix(100'000'001) + "{}"), HasSubstr("the limit is 100000000"));
  EXPECT_THAT(error_for(length_prefix(100'000'000) + "{}"), HasSubstr("but has only 10 bytes"));
}

TEST_F(SafetensorsTest, RefusesTheHeaderOfTenMillionTensors) {
  // Such a header takes over 4e8 bytes; the file is sparse, and nothing of it may be read before the length is judged.
  write_file(path_, length_prefix(480'000'000));
  std::filesystem::resize_file(path_, 8 + 480'000'000);
  EXPECT_THAT(error_of([&] { SafetensorsReader reader(path_); }), HasSubstr("the limit is 100000000"));
}

TEST_F(SafetensorsTest, RefusesWhatIsNotJson) {
  EXPECT_THAT(header_error("\xff"), HasSubstr("not UTF-8"));
  EXPECT_THAT(header_error("{\"\xc3\":1}"), HasSubstr("not UTF-8"));
  EXPECT_THAT(header_error("{\"\xed\xa0\x80\":1}"), HasSubstr("not UTF-8"));  // a surrogate
  EXPECT_THAT(header_error("{"), HasSubstr("not JSON at byte"));
  EXPECT_THAT(header_error(""), HasSubstr("does not start with {"));
  EXPECT_THAT(header_error("   "), HasSubstr("does not start with {"));
  EXPECT_THAT(header_error("[]"), HasSubstr("does not start with {"));
  EXPECT_THAT(header_error("\xef\xbb\xbf{}"), HasSubstr("does not start with {"));  // a byte-order mark
  EXPECT_THAT(header_error("{} {}"), HasSubstr("not JSON at byte"));
  EXPECT_THAT(header_error(std::string("{}\0 {", 5)), HasSubstr("not JSON at byte 3"));
  EXPECT_THAT(header_error(std::string("{}\0\0\0\0\0\0", 8)), HasSubstr("not JSON at byte 3"));
  EXPECT_THAT(header_error("{,}"), HasSubstr("not JSON at byte"));
  EXPECT_THAT(header_error(R"({"x":.5})"), HasSubstr("not JSON at byte"));
}

TEST_F(SafetensorsTest, RefusesTheWrongStructure) {
  EXPECT_THAT(header_error(one_tensor(R"("F31")", "[1]", "[0,4]"), 4), AllOf(HasSubstr("\"x\""), HasSubstr("\"F31\"")));
  EXPECT_THAT(header_error(one_tensor(R"("f32")", "[1]", "[0,4]"), 4), HasSubstr("unknown dtype"));
  EXPECT_THAT(header_error(one_tensor("1", "[1]", "[0,4]"), 4), HasSubstr("a number under \"dtype\""));
  EXPECT_THAT(header_error(one_tensor(R"("F32")", "[-1]", "[0,4]"), 4), HasSubstr("negative number -1"));
  EXPECT_THAT(header_error(one_tensor(R"("F32")", "[1.0]", "[0,4]"), 4), HasSubstr("1.0"));
  EXPECT_THAT(header_error(one_tensor(R"("F32")", "[1e0]", "[0,4]"), 4), HasSubstr("1e0"));
  EXPECT_THAT(header_error(one_tensor(R"("F32")", "[18446744073709551616]", "[0,4]"), 4), HasSubstr("not an integer"));
  EXPECT_THAT(header_error(one_tensor(R"("F32")", "[[1]]", "[0,4]"), 4), HasSubstr("a list under \"shape\""));
  EXPECT_THAT(header_error(one_tensor(R"("F32")", "[\"1\"]", "[0,4]"), 4), HasSubstr("a string under \"shape\""));
  EXPECT_THAT(header_error(one_tensor(R"("F32")", "1", "[0,4]"), 4), HasSubstr("a number under \"shape\""));
  EXPECT_THAT(header_error(one_tensor(R"("F32")", "null", "[0,4]"), 4), HasSubstr("null under \"shape\""));
  EXPECT_THAT(header_error(one_tensor(R"("F32")", "{}", "[0,4]"), 4), HasSubstr("an object under \"shape\""));
  EXPECT_THAT(header_error(one_tensor(R"("F32")", "[1]", "[0]"), 4), HasSubstr("[begin, end]"));
  EXPECT_THAT(header_error(one_tensor(R"("F32")", "[1]", "[0,4,4]"), 4), HasSubstr("[begin, end]"));
  EXPECT_THAT(header_error(R"({"x":{"dtype":"F32","shape":[1]}})", 4), HasSubstr("data_offsets"));
  EXPECT_THAT(header_error(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"y":"F32"}})", 4),
              HasSubstr("a string under \"y\""));
  EXPECT_THAT(header_error(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"y":[]}})", 4),
              HasSubstr("a list under \"y\""));
  EXPECT_THAT(header_error(R"({"x":4})"), HasSubstr("a number under \"x\""));
  EXPECT_THAT(header_error(R"({"x":[]})"), HasSubstr("a list under \"x\""));
  EXPECT_THAT(header_error(R"({"__metadata__":{"a":1}})"), HasSubstr("a number under \"a\""));
  EXPECT_THAT(header_error(R"({"__metadata__":{"a":{}}})"), HasSubstr("an object under \"a\""));
  EXPECT_THAT(header_error(R"({"__metadata__":true})"), HasSubstr("a boolean under"));
  std::string axes = "[1";
  for (int axis = 0; axis < 64; ++axis) axes += ",1";
  EXPECT_THAT(header_error(one_tensor(R"("U8")", axes + "]", "[0,1]"), 1), HasSubstr("shape has over 64"));
}

TEST_F(SafetensorsTest, RefusesWhatStandsTwice) {
  const std::string empty = R"({"dtype":"F32","shape":[0],"data_offsets":[0,0]})";
  EXPECT_THAT(header_error(R"({"x":)" + empty + R"(,"x":)" + empty + "}"), HasSubstr("name \"x\" stands twice"));
  EXPECT_THAT(header_error(R"({"x":)" + empty + R"(,"\u0078":)" + empty + "}"), HasSubstr("name \"x\" stands twice"));
  EXPECT_THAT(header_error(R"({"__metadata__":{},"__metadata__":{}})"), HasSubstr("stands twice"));
  EXPECT_THAT(header_error(R"({"__metadata__":{"a":"","a":""}})"), HasSubstr("metadata key \"a\" stands twice"));
  EXPECT_THAT(header_error(R"({"x":{"dtype":"F32","dtype":"F32","shape":[0],"data_offsets":[0,0]}})"),
              HasSubstr("field \"dtype\" stands twice"));
}

TEST_F(SafetensorsTest, RefusesTheWrongLayout) {
  EXPECT_THAT(error_for(file_of(kGoodHeader, 16) + "extra_bogus_data"), HasSubstr("need 16 bytes of data, it has 32"));
  EXPECT_THAT(error_for(file_of(kGoodHeader, 14)), HasSubstr("need 16 bytes of data, it has 14"));
  EXPECT_THAT(header_error(one_tensor(R"("I32")", "[2,2]", "[0,4]"), 16),
              HasSubstr("needs 16 bytes, data_offsets give 4"));
  EXPECT_THAT(header_error(one_tensor(R"("I32")", "[2]", "[4,12]"), 12), HasSubstr("must begin at 0"));
  EXPECT_THAT(header_error(one_tensor(R"("I32")", "[0]", "[0,-4]"), 0), HasSubstr("negative number -4"));
  EXPECT_THAT(header_error(one_tensor(R"("I32")", "[2]", "[8,0]"), 8), HasSubstr("[8,0]"));
  EXPECT_THAT(header_error(one_tensor(R"("F4")", "[3]", "[0,2]"), 2), HasSubstr("12 bits are not whole bytes"));
  const std::string first = R"({"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]},"b":)";
  EXPECT_THAT(header_error(first + R"({"dtype":"I32","shape":[1],"data_offsets":[8,12]}})", 12),
              AllOf(HasSubstr("tensor \"b\""), HasSubstr("must begin at 4")));  // a hole
  EXPECT_THAT(header_error(first + R"({"dtype":"I32","shape":[1],"data_offsets":[2,6]}})", 6),
              AllOf(HasSubstr("tensor \"b\""), HasSubstr("must begin at 4")));  // an overlap
  EXPECT_THAT(header_error(first + R"({"dtype":"I32","shape":[0],"data_offsets":[4,3]}})", 4), HasSubstr("[4,3]"));
}

TEST_F(SafetensorsTest, RefusesTenTensorsInOnePlace) {
  std::string header = "{";
  for (int i = 0; i < 10; ++i) {
    header += (i == 0 ? "\"" : ",\"") + std::to_string(i) + R"(":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]})";
  }
  EXPECT_THAT(header_error(header + "}", 16), HasSubstr("must begin at 16"));
}

TEST_F(SafetensorsTest, RefusesShapesThatOverflow) {
  for (const std::string shape : {"[2,18446744073709551614]", "[2,9223372036854775807]", "[4294967296,4294967296]"}) {
    EXPECT_THAT(header_error(one_tensor(R"("I32")", shape, "[0,16]"), 16), HasSubstr("overflows")) << shape;
  }
}

TEST_F(SafetensorsTest, CutsAHostileNameInTheMessage) {
  const std::string name(100'000, 'n');
  const std::string text = header_error("{\"" + name + R"(\u0001\n":{"dtype":"?"}})");
  EXPECT_THAT(text, HasSubstr("nnn..."));
  EXPECT_LT(text.size(), 1000U);
}

TEST_F(SafetensorsTest, RefusesWhatIsNotAFile) {
  EXPECT_THAT(error_of([&] { SafetensorsReader reader(directory_ / "absent"); }), HasSubstr("there is no such file"));
  EXPECT_THAT(error_of([&] { SafetensorsReader reader(directory_.path()); }), HasSubstr("not a regular file"));
}

// What the tests below write: every element type of Cadre, a scalar, empty tensors, a name that needs escaping.
class Sample {
 public:
  Sample() {
    for (size_t i = 0; i < storage_.size(); ++i) storage_[i] = static_cast<std::byte>(i * 37 + 1);
    add("w.f32", DType::f32, {2, 3});
    add("a.u8", DType::u8, {5});
    add("b.bf16", DType::bf16, {3, 1, 1});
    add("z.i64", DType::i64, {});
    add("a.i64", DType::i64, {2});
    add("d.f64", DType::f64, {1});
    add("c.i32", DType::i32, {0, 4});
    add("quote\"\n\xc3\xa9", DType::f32, {0});
  }

  const std::vector<TensorSource>& tensors() const { return tensors_; }

 private:
  void add(std::string name, DType dtype, std::vector<int64_t> shape) {
    size_t bytes = size_of(dtype);
    for (const int64_t extent : shape) bytes *= static_cast<size_t>(extent);
    tensors_.push_back({std::move(name), dtype, std::move(shape), std::span(storage_).subspan(used_, bytes)});
    used_ += bytes;
  }

  std::array<std::byte, 128> storage_{};
  size_t used_ = 0;
  std::vector<TensorSource> tensors_;
};

TEST_F(SafetensorsTest, WritesTheExpectedBytes) {
  const float values[2] = {1.0F, -2.0F};
  const uint8_t small[3] = {7, 8, 9};
  const std::vector<TensorSource> tensors = {{"small", DType::u8, {3}, std::as_bytes(std::span(small))},
                                             {"b", DType::f32, {1, 1}, std::as_bytes(std::span(values).last(1))},
                                             {"a", DType::f32, {}, std::as_bytes(std::span(values).first(1))}};
  const FileDigest digest = write_safetensors(path_, tensors);
  std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
      R"("b":{"dtype":"F32","shape":[1,1],"data_offsets":[4,8]},"small":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}})";
  ASSERT_NE(header.size() % 8, 0U);
  while (header.size() % 8 != 0) header += ' ';
  const std::string data("\x00\x00\x80\x3f\x00\x00\x00\xc0\x07\x08\x09", 11);
  EXPECT_EQ(read_file(path_), length_prefix(header.size()) + header + data);
  EXPECT_EQ(digest.bytes, 8 + header.size() + 11);
  EXPECT_EQ(digest, digest_file(path_));
  EXPECT_FALSE(std::filesystem::exists(directory_ / "model.safetensors.tmp"));
}

TEST_F(SafetensorsTest, ReadsBackWhatItWrote) {
  const Sample sample;
  write_safetensors(path_, sample.tensors());
  const SafetensorsReader reader(path_);
  EXPECT_EQ(reader.metadata(), (std::map<std::string, std::string>{{"format", "pt"}}));
  ASSERT_EQ(reader.entries().size(), sample.tensors().size());
  for (const TensorSource& tensor : sample.tensors()) {
    const TensorEntry* entry = reader.find(tensor.name);
    ASSERT_NE(entry, nullptr) << tensor.name;
    EXPECT_EQ(entry->dtype, tensor.dtype);
    EXPECT_EQ(entry->shape, tensor.shape);
    const auto bytes = reader.bytes(*entry);
    EXPECT_TRUE(std::ranges::equal(bytes, tensor.bytes)) << tensor.name;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes.data()) % size_of(tensor.dtype), 0U) << tensor.name;
  }
}

TEST_F(SafetensorsTest, WritesAFileWithoutTensors) {
  write_safetensors(path_, {});
  EXPECT_EQ(read_file(path_), length_prefix(32) + R"({"__metadata__":{"format":"pt"}})");
  EXPECT_TRUE(SafetensorsReader(path_).entries().empty());
}

TEST_F(SafetensorsTest, ATruncationAtAnyByteIsAnError) {
  write_safetensors(path_, Sample().tensors());
  const std::string whole = read_file(path_);
  ASSERT_GT(whole.size(), 500U);
  for (size_t size = whole.size(); size-- > 0;) {
    std::filesystem::resize_file(path_, size);
    EXPECT_NE(error_of([&] { SafetensorsReader reader(path_); }), "") << size;
  }
}

TEST_F(SafetensorsTest, ABitFlipInTheHeaderIsAnErrorOrAnotherValidFile) {
  write_safetensors(path_, Sample().tensors());
  const std::string whole = read_file(path_);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, whole.data(), sizeof header_bytes);
  const auto write_byte = [&](size_t place, int value) {
    std::fstream(path_, std::ios::binary | std::ios::in | std::ios::out)
        .seekp(static_cast<std::streamoff>(place))
        .put(static_cast<char>(value));
  };
  size_t num_refused = 0;
  for (size_t bit = 0; bit < 8 * (8 + header_bytes); ++bit) {
    write_byte(bit / 8, whole[bit / 8] ^ (1 << (bit % 8)));
    try {
      // A flip inside a name or between equally wide types leaves a valid file; its data must still be in place.
      const SafetensorsReader reader(path_);
      uint64_t data_bytes = 0;
      for (const TensorEntry& entry : reader.entries()) data_bytes += reader.bytes(entry).size();
      EXPECT_EQ(data_bytes, whole.size() - 8 - header_bytes) << bit;
    } catch (const Error&) {
      ++num_refused;
    }
    write_byte(bit / 8, whole[bit / 8]);
  }
  EXPECT_GT(num_refused, 8 * header_bytes / 2);
  EXPECT_LT(num_refused, 8 * (8 + header_bytes));
}

TEST_F(SafetensorsTest, RefusesToWriteWhatCannotBeRead) {
  const std::array<std::byte, 8> bytes{};
  const auto error = [&](std::vector<TensorSource> tensors) {
    return error_of([&] { write_safetensors(path_, tensors); });
  };
  EXPECT_THAT(error({{"x", DType::f32, {3}, bytes}}), AllOf(HasSubstr("\"x\""), HasSubstr("needs 12 bytes, 8 were")));
  EXPECT_THAT(error({{"x", DType::f32, {-2}, bytes}}), HasSubstr("extent -2"));
  EXPECT_THAT(error({{"x", DType::f32, {2, std::numeric_limits<int64_t>::max()}, bytes}}), HasSubstr("overflows"));
  EXPECT_THAT(error({{"\xff", DType::f32, {2}, bytes}}), HasSubstr("not UTF-8"));
  EXPECT_THAT(error({{"__metadata__", DType::f32, {2}, bytes}}), HasSubstr("reserved"));
  EXPECT_THAT(error({{"x", DType::f32, {2}, bytes}, {"x", DType::i32, {2}, bytes}}), HasSubstr("given twice"));
  EXPECT_TRUE(std::filesystem::is_empty(directory_.path()));
}

TEST_F(SafetensorsTest, AFolderThatCannotBeWrittenIsNamed) {
  write_file(directory_ / "file", "");
  const auto error = [&](std::string_view name) {
    return error_of([&] { write_safetensors(directory_ / name, Sample().tensors()); });
  };
  EXPECT_THAT(error("absent/x"), AllOf(HasSubstr("absent/x"), HasSubstr("No such file"), HasSubstr("folder exists")));
  EXPECT_THAT(error("file/x"), HasSubstr("Not a directory"));
}

// While it lives no file of this process can grow beyond `bytes`: a disk that is full after so many.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) : old_handler_(::signal(SIGXFSZ, SIG_IGN)) {
    EXPECT_EQ(::getrlimit(RLIMIT_FSIZE, &old_limit_), 0);
    const rlimit limit = {bytes, old_limit_.rlim_max};
    EXPECT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  }
  ~FullDisk() {
    ::setrlimit(RLIMIT_FSIZE, &old_limit_);
    ::signal(SIGXFSZ, old_handler_);
  }

 private:
  rlimit old_limit_{};
  sighandler_t old_handler_;
};

TEST_F(SafetensorsTest, AFullDiskKeepsTheOldFile) {
  write_file(path_, "the old file");
  std::string text;
  {
    const FullDisk full_disk(560);
    text = error_of([&] { write_safetensors(path_, Sample().tensors()); });
  }
  EXPECT_THAT(text, AllOf(HasSubstr(path_.string()), HasSubstr("560 of "), HasSubstr("File too large"),
                          HasSubstr("free some space")));
  EXPECT_EQ(read_file(path_), "the old file");
  EXPECT_FALSE(std::filesystem::exists(directory_ / "model.safetensors.tmp"));
  write_safetensors(path_, Sample().tensors());
  EXPECT_GT(read_file(path_).size(), 560U);
}

}  // namespace
}  // namespace cadre::safetensors_test
