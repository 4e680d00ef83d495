// SPDX-License-Identifier: Apache-2.0
#include "runtime/parallel/products.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <vector>

#include "comm/base/check.hpp"
#include "comm/job/wait.hpp"
#include "runtime/checkpoint/file.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

constexpr char kKey[] = "compute.products";
constexpr char kAuto[] = "auto";

// Two lines: the machine and the choice. None where the file is missing or of another machine.
std::optional<ProductChoice> read_choice(const fs::path& path, const std::string& machine) {
  std::ifstream file(path);
  std::string found;
  std::string choice;
  if (!std::getline(file, found) || !std::getline(file, choice) || found != machine) return std::nullopt;
  try {
    return ProductChoice::parse(choice, path.string());
  } catch (const Error&) {  // written by another version
    return std::nullopt;
  }
}

// Whole or not at all; a file that is there stays, unless it is to be overwritten.
void write_choice(const fs::path& path, const std::string& machine, const ProductChoice& choice, bool overwrites) {
  std::error_code ignored;  // a cache that cannot be written is measured again
  fs::create_directories(path.parent_path(), ignored);
  const fs::path part = fmt::format("{}.{}", path.string(), ::getpid());
  std::ofstream(part) << machine << '\n' << choice.text() << '\n';
  if (overwrites) {
    fs::rename(part, path, ignored);
  } else {
    fs::create_hard_link(part, path, ignored);
  }
  fs::remove(part, ignored);
}

}  // namespace

fs::path product_cache() {
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache == '/')
    return fs::path(cache) / "cadre";
  if (const char* home = std::getenv("HOME"); home != nullptr && *home == '/')
    return fs::path(home) / ".cache" / "cadre";
  return {};
}

ProductChoice choose_products(const fs::path& cache, bool anew) {
  if (cache.empty()) return measure_products();
  const std::string machine = product_machine();
  const fs::path path = cache / fmt::format("products-{}.txt", hex(digest_of(machine).xxh64));
  if (!anew) {
    if (const auto known = read_choice(path, machine)) return *known;
  }
  const ProductChoice measured = measure_products();
  write_choice(path, machine, measured, anew);
  return read_choice(path, machine).value_or(measured);
}

std::string products_of_rank_0(const Communicator& world, const std::string& products) {
  std::vector<char> text(64);
  if (world.rank() == 0) {
    (products == kAuto ? choose_products(product_cache()).text() : products).copy(text.data(), text.size() - 1);
  }
  return wait(world.broadcast(std::move(text), 0)).data();
}

ProductChoice agree_on_products(const Communicator& world, const std::string& products) {
  return ProductChoice::parse(products == kAuto ? products_of_rank_0(world, kAuto) : products, kKey);
}

std::string note_on_machines(const Communicator& world, const std::string& products) {
  const uint64_t mine = digest_of(product_machine()).xxh64;
  const std::vector<uint64_t> machines = wait(world.all_gather(mine));
  const auto other = std::ranges::find_if(machines, [&](uint64_t machine) { return machine != machines.front(); });
  if (other == machines.end()) return {};
  return fmt::format(
      "note: rank {} has another CPU or other libraries than rank 0, whose choice of products ({}) all ranks use\n",
      other - machines.begin(), products);
}

}  // namespace cadre
