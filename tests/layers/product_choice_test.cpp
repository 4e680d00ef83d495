// SPDX-License-Identifier: Apache-2.0
#include "layers/kernels/product_choice.hpp"

#include <gtest/gtest.h>

#include <string>

#include "comm/base/check.hpp"

namespace cadre::product_choice_test {
namespace {

TEST(ProductChoice, IsWhatItsTextSays) {
  const auto choice = ProductChoice::parse(
      has_onednn() ? "nt=bboo nn=obob tn=bbbo copy=0110" : "nt=bbbb nn=bbbb tn=bbbb copy=0110", "compute.products");
  const GemmLibrary other = has_onednn() ? GemmLibrary::onednn : GemmLibrary::openblas;
  for (const int64_t tokens : {1, 4, 5, 32}) EXPECT_EQ(choice.library(GemmLayout::nt, tokens), GemmLibrary::openblas);
  for (const int64_t tokens : {33, 128, 129, 100'000}) EXPECT_EQ(choice.library(GemmLayout::nt, tokens), other);
  EXPECT_EQ(choice.library(GemmLayout::nn, 4), other);
  EXPECT_EQ(choice.library(GemmLayout::nn, 5), GemmLibrary::openblas);
  EXPECT_EQ(choice.library(GemmLayout::tn, 128), GemmLibrary::openblas);
  EXPECT_EQ(choice.library(GemmLayout::tn, 129), other);
  EXPECT_FALSE(choice.transposed(4));
  EXPECT_TRUE(choice.transposed(5));
  EXPECT_TRUE(choice.transposed(128));
  EXPECT_FALSE(choice.transposed(129));
  EXPECT_TRUE(choice.keeps_copies());
  EXPECT_EQ(ProductChoice::parse(choice.text(), ""), choice);
}

TEST(ProductChoice, HasNames) {
  EXPECT_EQ(ProductChoice::parse("openblas", "").text(), "nt=bbbb nn=bbbb tn=bbbb copy=0000");
  EXPECT_FALSE(ProductChoice::parse("openblas", "").keeps_copies());
  if (!has_onednn()) return;
  EXPECT_EQ(ProductChoice::parse("onednn", "").text(), "nt=oooo nn=oooo tn=oooo copy=0000");
  EXPECT_EQ(ProductChoice::parse("onednn-packed", "").text(), "nt=oooo nn=oooo tn=oooo copy=1111");
}

TEST(ProductChoice, RefusesOtherTexts) {
  for (const std::string text :
       {"", "mkl", "nt=bboo", "nt=bbbb nn=bbbb tn=bbbb copy=000", "nt=bbxb nn=bbbb tn=bbbb copy=0000",
        "nt=bbbb nn=bbbb tn=bbbb copy=0000 ", "nn=bbbb nt=bbbb tn=bbbb copy=0000"}) {
    try {
      ProductChoice::parse(text, "compute.products");
      FAIL() << text;
    } catch (const Error& error) {
      EXPECT_NE(error.text().find("compute.products"), std::string::npos) << error.text();
    }
  }
}

TEST(ProductChoice, AMeasurementIsAChoice) {
  const ProductChoice choice = measure_products();
  EXPECT_EQ(ProductChoice::parse(choice.text(), ""), choice);
  EXPECT_FALSE(product_machine().empty());
  EXPECT_EQ(product_machine(), product_machine());
}

}  // namespace
}  // namespace cadre::product_choice_test
