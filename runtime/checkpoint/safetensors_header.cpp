// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/safetensors_header.hpp"

#include <boost/locale/utf.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <string>
#include <unordered_set>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

using nlohmann::json;

constexpr size_t kMaxAxes = 64;
constexpr size_t kMaxQuotedBytes = 200;

constexpr std::array kDTypes = {
    SafetensorsDType{"BOOL", 8, {}},           SafetensorsDType{"F4", 4, {}},
    SafetensorsDType{"F6_E2M3", 6, {}},        SafetensorsDType{"F6_E3M2", 6, {}},
    SafetensorsDType{"U8", 8, DType::u8},      SafetensorsDType{"I8", 8, {}},
    SafetensorsDType{"F8_E5M2", 8, {}},        SafetensorsDType{"F8_E4M3", 8, DType::fp8},
    SafetensorsDType{"F8_E8M0", 8, {}},        SafetensorsDType{"F8_E4M3FNUZ", 8, {}},
    SafetensorsDType{"F8_E5M2FNUZ", 8, {}},    SafetensorsDType{"I16", 16, {}},
    SafetensorsDType{"U16", 16, {}},           SafetensorsDType{"F16", 16, {}},
    SafetensorsDType{"BF16", 16, DType::bf16}, SafetensorsDType{"I32", 32, DType::i32},
    SafetensorsDType{"U32", 32, {}},           SafetensorsDType{"F32", 32, DType::f32},
    SafetensorsDType{"C64", 64, {}},           SafetensorsDType{"F64", 64, DType::f64},
    SafetensorsDType{"I64", 64, DType::i64},   SafetensorsDType{"U64", 64, {}},
};

[[noreturn]] void fail(std::string_view file, std::string_view problem) {
  throw Error(ErrorKind::input, fmt::format("{} is not a usable safetensors file: {}", file, problem),
              "the file is damaged or incomplete: fetch or save it again");
}

[[noreturn]] void fail(std::string_view file, const TensorEntry& entry, std::string_view problem) {
  fail(file, fmt::format("tensor {}: {}", quote_name(entry.name), problem));
}

// Follows the parser through the one structure that a header may have, so that memory stays in proportion to the text:
//   {"__metadata__": {key: string, ...}, name: {"dtype": string, "shape": [...], "data_offsets": [begin, end]}, ...}
class HeaderParser final : public json::json_sax_t {
 public:
  explicit HeaderParser(std::string_view file) : file_(file) {}

  SafetensorsHeader take() { return std::move(header_); }

  bool start_object(size_t) override {
    if (place_ == Place::outside) {
      place_ = Place::root;
    } else if (place_ == Place::root) {
      place_ = key_ == kMetadataKey ? Place::metadata : Place::tensor;
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool key(std::string& key) override {
    key_ = key;
    switch (place_) {
      case Place::root: begin_tensor(); break;
      case Place::metadata: claim(header_.metadata.emplace(key_, "").second, "metadata key"); break;
      default: claim(fields_.insert(key_).second, "field"); break;
    }
    return true;
  }

  bool string(std::string& value) override {
    if (place_ == Place::metadata) {
      header_.metadata[key_] = value;
    } else if (place_ == Place::tensor && key_ == "dtype") {
      const SafetensorsDType* dtype = find_safetensors_dtype(value);
      if (dtype == nullptr) fail(file_, entry(), fmt::format("unknown dtype {}", quote_name(value)));
      entry().dtype_name = dtype->name;
      entry().dtype = dtype->dtype;
    } else {
      unexpected("a string");
    }
    return true;
  }

  bool start_array(size_t) override {
    if (place_ != Place::tensor || (key_ != "shape" && key_ != "data_offsets")) unexpected("a list");
    place_ = Place::list;
    numbers_.clear();
    return true;
  }

  bool number_unsigned(uint64_t value) override {
    if (place_ != Place::list) unexpected("a number");
    if (numbers_.size() == kMaxAxes) fail(file_, entry(), fmt::format("{} has over {} numbers", key_, kMaxAxes));
    numbers_.push_back(value);
    return true;
  }

  bool end_array() override {
    place_ = Place::tensor;
    key_ == "shape" ? end_shape() : end_offsets();
    return true;
  }

  bool end_object() override {
    if (place_ == Place::tensor && fields_ != kFields) {
      fail(file_, entry(), "it must have dtype, shape and data_offsets and nothing else");
    }
    place_ = place_ == Place::root ? Place::outside : Place::root;
    return true;
  }

  bool number_integer(int64_t value) override { return unexpected(fmt::format("the negative number {}", value)); }
  bool number_float(double, const std::string& text) override {
    return unexpected(fmt::format("the number {}, not an integer below 2^64,", text.substr(0, kMaxQuotedBytes)));
  }
  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("a boolean"); }
  bool binary(binary_t&) override { return unexpected("binary data"); }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    fail(file_, fmt::format("the header is not JSON at byte {}", position));
  }

 private:
  enum class Place { outside, root, metadata, tensor, list };
  inline static const std::unordered_set<std::string> kFields = {"dtype", "shape", "data_offsets"};

  TensorEntry& entry() { return header_.entries.back(); }

  void begin_tensor() {
    claim(names_.insert(key_).second, "name");
    fields_.clear();
    if (key_ != kMetadataKey) header_.entries.push_back({.name = key_, .dtype_name = {}, .dtype = {}, .shape = {}});
  }

  void end_shape() {
    for (const uint64_t extent : numbers_) {
      if (!std::in_range<int64_t>(extent)) fail(file_, entry(), fmt::format("the extent {} overflows", extent));
      entry().shape.push_back(static_cast<int64_t>(extent));
    }
  }

  void end_offsets() {
    if (numbers_.size() != 2) fail(file_, entry(), "data_offsets must be [begin, end]");
    entry().begin = numbers_[0];
    entry().end = numbers_[1];
  }

  void claim(bool is_new, std::string_view what) {
    if (!is_new) fail(file_, fmt::format("the {} {} stands twice", what, quote_name(key_)));
  }

  bool unexpected(std::string_view what) {
    const std::string problem = fmt::format("{} under {} does not belong there", what, quote_name(key_));
    if (place_ == Place::tensor || place_ == Place::list) fail(file_, entry(), problem);
    fail(file_, problem);
  }

  std::string_view file_;
  SafetensorsHeader header_;
  std::unordered_set<std::string> names_;
  std::unordered_set<std::string> fields_;  // of the tensor at hand
  std::vector<uint64_t> numbers_;           // of the list at hand
  std::string key_;
  Place place_ = Place::outside;
};

// Bytes that shape and dtype ask for.
uint64_t wanted_bytes(const TensorEntry& entry, std::string_view file) {
  uint64_t bits = 1;
  for (const int64_t extent : entry.shape) {
    if (__builtin_mul_overflow(bits, static_cast<uint64_t>(extent), &bits)) {
      fail(file, entry, fmt::format("the shape [{}] overflows", fmt::join(entry.shape, ",")));
    }
  }
  if (__builtin_mul_overflow(bits, uint64_t{find_safetensors_dtype(entry.dtype_name)->bits}, &bits)) {
    fail(file, entry, fmt::format("the shape [{}] overflows", fmt::join(entry.shape, ",")));
  }
  if (bits % 8 != 0) fail(file, entry, fmt::format("its {} bits are not whole bytes", bits));
  return bits / 8;
}

void check_layout(const std::vector<TensorEntry>& entries, uint64_t data_bytes, std::string_view file) {
  uint64_t previous_end = 0;
  for (const TensorEntry& entry : entries) {
    if (entry.begin != previous_end || entry.end < entry.begin) {
      fail(file, entry,
           fmt::format("data_offsets [{},{}] must begin at {}, where the tensor before it ends, and not run "
                       "backwards",
                       entry.begin, entry.end, previous_end));
    }
    const uint64_t wanted = wanted_bytes(entry, file);
    if (entry.bytes() != wanted) {
      fail(file, entry,
           fmt::format("{}[{}] needs {} bytes, data_offsets give {}", entry.dtype_name, fmt::join(entry.shape, ","),
                       wanted, entry.bytes()));
    }
    previous_end = entry.end;
  }
  if (previous_end != data_bytes) {
    fail(file, fmt::format("its tensors need {} bytes of data, it has {}", previous_end, data_bytes));
  }
}

}  // namespace

const SafetensorsDType* find_safetensors_dtype(std::string_view name) {
  const auto* found = std::ranges::find(kDTypes, name, &SafetensorsDType::name);
  return found == kDTypes.end() ? nullptr : found;
}

const SafetensorsDType& safetensors_dtype(DType dtype) {
  const auto* found = std::ranges::find(kDTypes, dtype, &SafetensorsDType::dtype);
  CADRE_CHECK(found != kDTypes.end(), fmt::format("safetensors has no element type {}", name_of(dtype)));
  return *found;
}

SafetensorsHeader parse_safetensors_header(std::string_view text, uint64_t data_bytes, std::string_view file) {
  if (!is_utf8(text)) fail(file, "the header is not UTF-8");
  // The JSON library stops at a NUL byte and skips a byte-order mark; neither is JSON.
  const size_t start = text.find_first_not_of(" \t\r\n");
  const size_t nul = text.find('\0');
  if (start == std::string_view::npos || text[start] != '{') fail(file, "the header does not start with {");
  if (nul != std::string_view::npos) fail(file, fmt::format("the header is not JSON at byte {}", nul + 1));
  HeaderParser parser(file);
  json::sax_parse(text.begin(), text.end(), &parser);
  SafetensorsHeader header = parser.take();
  std::ranges::stable_sort(header.entries, {},
                           [](const TensorEntry& entry) { return std::pair(entry.begin, entry.end); });
  check_layout(header.entries, data_bytes, file);
  return header;
}

std::string format_safetensors_header(const SafetensorsHeader& header) {
  std::string text = "{";
  if (!header.metadata.empty()) {
    text += fmt::format("{}:{},", json(kMetadataKey).dump(), json(header.metadata).dump());
  }
  for (const TensorEntry& entry : header.entries) {
    text += fmt::format(R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}},)", json(entry.name).dump(),
                        entry.dtype_name, fmt::join(entry.shape, ","), entry.begin, entry.end);
  }
  if (text.back() == ',') text.pop_back();
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

bool is_utf8(std::string_view text) {
  const char* place = text.data();
  const char* end = place + text.size();
  while (place != end) {
    const auto code_point = boost::locale::utf::utf_traits<char>::decode(place, end);
    if (code_point == boost::locale::utf::illegal || code_point == boost::locale::utf::incomplete) return false;
  }
  return true;
}

std::string quote_name(std::string_view name) {
  const json text =
      name.size() <= kMaxQuotedBytes ? std::string(name) : std::string(name.substr(0, kMaxQuotedBytes)) + "...";
  return text.dump(-1, ' ', true, json::error_handler_t::replace);
}

}  // namespace cadre
