// SPDX-License-Identifier: Apache-2.0
// Rotary positions in a config.json. transformers 4 writes rope_theta and rope_scaling, transformers 5 one object
// rope_parameters with the theta in it; where a file has both, what counts is what transformers 5 takes.
#include <nlohmann/json.hpp>

#include <array>

#include "comm/base/check.hpp"
#include "layers/model/config_reader.hpp"
#include "layers/model/family.hpp"
#include "layers/nn/attention.hpp"

namespace cadre {
namespace {

using nlohmann::json;

constexpr const char* kScaling = "rope_scaling";
constexpr const char* kParameters = "rope_parameters";
constexpr const char* kTheta = "rope_theta";
constexpr const char* kPartial = "partial_rotary_factor";

// Also of what is no object.
json at_or_null(const json& object, const std::string& key) {
  return object.is_object() ? object.value(key, json()) : json();
}

bool is_given(const json& object) { return !object.is_null() && !(object.is_structured() && object.empty()); }

// `name` is that of the object it is in, with a dot, or empty.
void read_partial(const std::string& name, const json& value, ConfigReader& reader) {
  const bool is_read = family_of(reader.config()).has_partial_rotary;
  if (!value.is_null() && is_read) return reader.read(kPartial, value);
  if (value.is_null() || value == 1.0) return;
  reader.refuse(name + kPartial, value, "1.0",
                "Cadre turns all elements that positions turn, or qk_rope_head_dim of them");
}

class RopeObject {
 public:
  RopeObject(std::string name, json object, ConfigReader& reader)
      : name_(std::move(name)), object_(std::move(object)), reader_(reader) {}

  // True when it has a theta, which then counts.
  bool read_theta() {
    const json theta = at_or_null(object_, kTheta);
    if (!theta.is_null()) reader_.read(kTheta, theta);
    return !theta.is_null();
  }

  void read(int64_t max_position_embeddings) {
    const json type = read_type();
    reader_.read("rope_scaling.type", type == "default" ? json("none") : type);
    read_partial(name_ + ".", at_or_null(object_, kPartial), reader_);
    for (const auto& [key, value] : object_.items()) {
      if (key == "type" || key == "rope_type" || key == kTheta || key == kPartial) continue;
      if (type == "default") {
        reader_.note_unused(name_ + "." + key);
      } else {
        read_key(key, value);
      }
    }
    if (type != "default") fill(max_position_embeddings);
  }

 private:
  json read_type() const {
    const json type = at_or_null(object_, "type");
    const json rope_type = at_or_null(object_, "rope_type");
    if (!type.is_null() && !rope_type.is_null() && type != rope_type) {
      reader_.refuse(name_ + ".type", type, fmt::format("rope_type = {}", shown(rope_type)), "two names of one key");
    }
    if (!type.is_null() || !rope_type.is_null()) return type.is_null() ? rope_type : type;
    for (const auto& [key, value] : object_.items()) {
      if (key != kTheta && key != kPartial && !value.is_null()) {
        reader_.refuse(name_, object_, "an object with type or rope_type: yarn | default",
                       fmt::format("it has no type, so its {} has no effect", key));
      }
    }
    return "default";
  }

  // transformers takes null, and 0 where that means nothing, for a key that is left out.
  void read_key(const std::string& key, const json& value) {
    const std::string field = "rope_scaling." + key;
    const bool is_beta = key == "beta_fast" || key == "beta_slow";
    if (value.is_null() && key == "truncate") reader_.refuse(name_ + "." + key, value, "true | false", "leave it out");
    if (value == 0 && key == "attention_factor")
      reader_.refuse(name_ + "." + key, value, "null, number > 0", "null: from mscale and mscale_all_dim");
    if (!reader_.has_field(field)) return reader_.read_unknown(name_ + "." + key, value);
    reader_.read(field, is_beta && value == 0 ? json() : value);
  }

  void fill(int64_t max_position_embeddings) {
    RopeScaling& scaling = reader_.config().rope_scaling;
    const json original = at_or_null(object_, "original_max_position_embeddings");
    if (original.is_null()) scaling.original_max_position_embeddings = max_position_embeddings;
    if (!object_.contains("factor")) {
      reader_.refuse(name_, object_, "yarn with a factor", "how many times longer texts become");
    }
    if (object_["factor"].is_null()) {
      scaling.factor =
          static_cast<double>(max_position_embeddings) / static_cast<double>(scaling.original_max_position_embeddings);
    }
    check_mscale();
  }

  // For a key that is left out DeepSeek's code goes on with 1 and 0.
  void check_mscale() const {
    const RopeScaling& scaling = reader_.config().rope_scaling;
    RopeScaling given = scaling;
    if (at_or_null(object_, "mscale").is_null()) given.mscale = 0.0;
    const bool is_plain = given.mscale == scaling.mscale
                              ? is_mscale_plain(scaling)
                              : yarn_attention_factor(scaling) == yarn_mscale(scaling.factor, 1.0);
    if (scaling.attention_factor > 0.0 || is_plain) return;
    reader_.refuse(name_ + ".mscale", at_or_null(object_, "mscale"), "a number > 0, and mscale_all_dim too",
                   "with one of them alone DeepSeek's code and transformers disagree; or give attention_factor");
  }

  std::string name_;
  json object_;
  ConfigReader& reader_;
};

}  // namespace

double yarn_attention_factor(const RopeScaling& scaling) {
  return yarn_mscale(scaling.factor, scaling.mscale) / yarn_mscale(scaling.factor, scaling.mscale_all_dim);
}

bool is_mscale_plain(const RopeScaling& scaling) {
  if (scaling.mscale > 0.0 && scaling.mscale_all_dim > 0.0) return true;
  return yarn_attention_factor(scaling) == yarn_mscale(scaling.factor, 1.0);
}

bool is_rope_key(std::string_view key) {
  return key == kScaling || key == kParameters || key == kTheta || key == kPartial;
}

void read_rope(const json& source, ConfigReader& reader) {
  const json scaling = at_or_null(source, kScaling);
  const json parameters = at_or_null(source, kParameters);
  const bool has_scaling = is_given(scaling);
  if (has_scaling && is_given(parameters) && scaling != parameters) {
    reader.refuse(kScaling, scaling, fmt::format("the same as {}", kParameters), "two names of one object: delete one");
  }
  const json theta = at_or_null(source, kTheta);
  if (!theta.is_null()) reader.read(kTheta, theta);
  const json partial = at_or_null(source, kPartial);
  read_partial("", partial, reader);
  const json inner = at_or_null(has_scaling ? scaling : parameters, kPartial);
  if (!partial.is_null() && !inner.is_null() && partial != inner) {
    reader.refuse(kPartial, partial, fmt::format("{} as in the object of rotary positions", shown(inner)),
                  "two places of one key");
  }
  const std::string name = has_scaling ? kScaling : kParameters;
  const json& object = has_scaling ? scaling : parameters;
  if (!is_given(object)) return;
  if (!object.is_object()) reader.refuse(name, object, "null or an object", "with type yarn, factor and so on");
  RopeObject rope(name, object, reader);
  const double outer = reader.config().rope_theta;
  if (rope.read_theta() && !theta.is_null() && reader.config().rope_theta != outer) {
    reader.note_unused(
        fmt::format("rope_theta = {} ({}.rope_theta = {} counts)", outer, name, reader.config().rope_theta));
  }
  rope.read(reader.config().max_position_embeddings);
}

}  // namespace cadre
