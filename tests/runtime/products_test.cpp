// SPDX-License-Identifier: Apache-2.0
// The choice of products: kept in a cache, agreed by all ranks, and taken over from the checkpoint that a run goes on from.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "comm/base/check.hpp"
#include "runtime/checkpoint/directory.hpp"
#include "runtime/parallel/devices.hpp"
#include "runtime/train/resume.hpp"
#include "tests/support/files.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::products_test {
namespace {

namespace fs = std::filesystem;

constexpr char kSome[] = "nt=bbbb nn=bbbb tn=bbbb copy=0101";  // no measurement comes to this

fs::path only_file_in(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) files.push_back(entry.path());
  EXPECT_EQ(files.size(), 1U);
  return files.empty() ? fs::path() : files.front();
}

void write_lines(const fs::path& path, const std::string& first, const std::string& second) {
  std::ofstream(path) << first << '\n' << second << '\n';
}

TEST(Products, AreMeasuredOnce) {
  const test::TemporaryDirectory folder;
  const fs::path cache = folder.path() / "a" / "cache";
  const ProductChoice measured = choose_products(cache);
  const fs::path file = only_file_in(cache);
  EXPECT_EQ(choose_products(cache), measured);
  write_lines(file, product_machine(), kSome);
  EXPECT_EQ(choose_products(cache).text(), kSome);
  choose_products(cache, /*anew=*/true);
  EXPECT_NE(choose_products(cache).text(), kSome);
}

TEST(Products, WhatAnotherMachineOrVersionWroteIsNotTaken) {
  const test::TemporaryDirectory folder;
  choose_products(folder.path());
  const fs::path file = only_file_in(folder.path());
  for (const auto& [machine, choice] : {std::pair<std::string, std::string>{"another CPU", kSome},
                                        {product_machine(), "mkl"},
                                        {product_machine(), ""},
                                        {"", ""}}) {
    write_lines(file, machine, choice);
    EXPECT_NE(choose_products(folder.path()).text(), kSome);
  }
}

TEST(Products, NoCacheIsNoObstacle) {
  EXPECT_NO_THROW(choose_products(""));
  EXPECT_NO_THROW(choose_products("/proc/no/such/folder"));
}

TEST(Products, AllRanksAgree) {
  test::on_ranks([](Communicator& world) {
    EXPECT_EQ(agree_on_products(world, kSome).text(), kSome);
    const std::string mine = agree_on_products(world, "auto").text();
    std::vector<char> first(mine.begin(), mine.end());
    first = wait(world.broadcast(std::move(first), 0));
    EXPECT_EQ(mine, std::string(first.begin(), first.end()));
  });
}

TEST(Products, ARunGoesOnWithTheChoiceOfItsCheckpoint) {
  const test::TemporaryDirectory folder;
  const fs::path checkpoint = folder.path() / "checkpoints" / "step_00000004";
  fs::create_directories(checkpoint);
  std::ofstream(checkpoint / "run.toml") << "[compute]\nproducts = \"" << kSome << "\"\n[data]\npath = \"x\"\n";
  std::ofstream(checkpoint / "cadre.json") << "{}";
  test::on_ranks([&](Communicator& world) {
    RunConfig config;
    config.out = folder.path().string();
    config.data.path = "x";
    std::string note;
    EXPECT_EQ(with_products(world, config, note).compute.products, kSome);
    EXPECT_EQ(note, "");
    config.compute.products = "openblas";
    EXPECT_EQ(with_products(world, config, note).compute.products, "openblas");
    config.compute.products = "auto";
    config.checkpoint.resume = "never";
    EXPECT_NE(with_products(world, config, note).compute.products, kSome);
    EXPECT_NE(with_products(world, config, note).compute.products, "auto");
  });
}

}  // namespace
}  // namespace cadre::products_test
