// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/expert_cache.hpp"

#include <cstring>
#include <string_view>

#include "comm/base/check.hpp"
#include "comm/base/random.hpp"

namespace cadre {
namespace {

uint64_t hash_of(const Tensor& x) { return hash_name({reinterpret_cast<const char*>(x.raw()), x.bytes()}); }

std::vector<std::byte> copy_of(const Tensor& rows) { return {rows.raw(), rows.raw() + rows.bytes()}; }

}  // namespace

bool ExpertCache::find(const void* expert, uint64_t version, const Tensor& x, const Tensor& y) {
  rows_looked_for_ += x.dim(0);
  const auto found = lookup(expert, version, hash_of(x), x);
  if (found == entries_.end()) return false;
  CADRE_ASSERT(found->y.size() == y.bytes());
  std::memcpy(y.raw(), found->y.data(), y.bytes());
  rows_found_ += x.dim(0);
  entries_.splice(entries_.begin(), entries_, found);
  return true;
}

void ExpertCache::keep(const void* expert, uint64_t version, const Tensor& x, const Tensor& y) {
  forget_other_versions(expert, version);
  const size_t size = x.bytes() + y.bytes();
  if (size == 0 || size > capacity_bytes_) return;
  const uint64_t hash = hash_of(x);
  if (lookup(expert, version, hash, x) != entries_.end()) return;
  while (bytes_ + size > capacity_bytes_) forget(std::prev(entries_.end()));
  entries_.push_front({expert, version, hash, copy_of(x), copy_of(y)});
  by_hash_.emplace(hash, entries_.begin());
  bytes_ += size;
}

ExpertCache::Entries::iterator ExpertCache::lookup(const void* expert, uint64_t version, uint64_t hash,
                                                   const Tensor& x) {
  const auto [first, last] = by_hash_.equal_range(hash);
  for (auto at = first; at != last; ++at) {
    const Entry& entry = *at->second;
    const bool same = entry.expert == expert && entry.version == version && entry.x.size() == x.bytes() &&
                      std::memcmp(entry.x.data(), x.raw(), x.bytes()) == 0;
    if (same) return at->second;
  }
  return entries_.end();
}

void ExpertCache::forget(Entries::iterator entry) {
  const auto [first, last] = by_hash_.equal_range(entry->hash);
  for (auto at = first; at != last; ++at) {
    if (at->second != entry) continue;
    by_hash_.erase(at);
    break;
  }
  bytes_ -= entry->x.size() + entry->y.size();
  entries_.erase(entry);
}

void ExpertCache::forget_other_versions(const void* expert, uint64_t version) {
  const auto [known, fresh] = version_of_.try_emplace(expert, version);
  if (fresh || known->second == version) return;
  known->second = version;
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    const auto next = std::next(entry);
    if (entry->expert == expert) forget(entry);
    entry = next;
  }
}

}  // namespace cadre
