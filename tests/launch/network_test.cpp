// SPDX-License-Identifier: Apache-2.0
// What the banner says of the network, of maps and adapters given by hand; measured links between thread ranks.
#include "launch/network.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "tests/support/ranks.hpp"

namespace cadre::network_test {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kFolder = "7f00-7f01 r-xp 00000000 08:01 77 /usr/lib/x86_64-linux-gnu/openmpi/lib/openmpi3/";

MpiComponents loaded(std::initializer_list<const char*> files) {
  std::string maps = "7f00-7f01 r-xp 00000000 08:01 77 /usr/lib/libc.so.6\n";
  for (const char* file : files) maps += std::string(kFolder) + file + "\n" + kFolder + file + "\n";
  std::istringstream stream(maps);
  return loaded_components(stream);
}

Adapters adapters_named(const std::string& names) {
  Adapters adapters;
  names.copy(adapters.names.data(), adapters.names.size() - 1);
  return adapters;
}

TEST(Network, ReadsTheComponentsOfOpenMpi) {
  const MpiComponents components =
      loaded({"mca_pml_ob1.so", "mca_btl_self.so", "mca_btl_vader.so", "mca_btl_tcp.so", "mca_coll_tuned.so"});
  EXPECT_EQ(components.pml, "ob1");
  EXPECT_THAT(components.btls, ElementsAre("self", "vader", "tcp"));
  EXPECT_EQ(network_text(components, {adapters_named(""), adapters_named("mlx5_0"), adapters_named("mlx5_0")}),
            "pml ob1, btl self vader tcp; fabric mlx5_0");
  EXPECT_EQ(network_text(loaded({"mca_pml_ucx.so"}), {adapters_named("")}), "pml ucx; fabric none: no RDMA adapter");
  EXPECT_EQ(network_text(loaded({}), {adapters_named("mlx5_0")}), "");
}

TEST(Network, WarnsOfTcpBesideAnAdapter) {
  const MpiComponents tcp = loaded({"mca_pml_ob1.so", "mca_btl_tcp.so"});
  const std::vector<Adapters> with = {adapters_named(""), adapters_named("mlx5_0")};
  EXPECT_THAT(tcp_warning(tcp, with, 2), AllOf(HasSubstr("TCP"), HasSubstr("mlx5_0"), HasSubstr("OMPI_MCA_pml=ucx")));
  EXPECT_EQ(tcp_warning(tcp, with, 1), "");
  EXPECT_EQ(tcp_warning(tcp, {adapters_named(""), adapters_named("")}, 2), "");
  EXPECT_EQ(tcp_warning(loaded({"mca_pml_ucx.so"}), with, 2), "");
}

TEST(Network, MeasuresOneNeighbourAndOneRankOfEachOtherHost) {
  test::on_ranks(
      [](const Communicator& world) {
        const std::vector<LinkSpeed> links = measure_links(world, Topology::uniform(3, 2), 16);
        if (world.rank() != 0) return;
        ASSERT_EQ(links.size(), 3U);
        EXPECT_EQ(links[0].second, 1);
        EXPECT_EQ(links[1].second, 2);
        EXPECT_EQ(links[2].second, 4);
        for (const LinkSpeed& link : links) {
          EXPECT_GT(link.latency_us, 0.0);
          EXPECT_GT(link.bytes_per_second, 0.0);
        }
      },
      {6});
}

}  // namespace
}  // namespace cadre::network_test
