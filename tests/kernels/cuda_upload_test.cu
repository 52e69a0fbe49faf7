#include "support/device.cuh"
#include "support/expect_error.hpp"
#include "support/random_tensor.hpp"
#include "support/temp_dir.hpp"

#include <nvl/core/dequantize.hpp>
#include <nvl/kernels/reference/error_measure.hpp>
#include <nvl/ops/cuda_upload.cuh>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

namespace {

using nvl::bf16;
using nvl::DType;
using nvl::fp16;
using nvl::HostTensor;
using nvl::UploadOptions;
using nvl::WeightUploader;
using nvl_test::DeviceVector;
using nvl_test::RandomTensor;
using nvl_test::TempDir;

constexpr DType some_types[] = {DType::float32, DType::float16, DType::bfloat16, DType::q4_0, DType::q8_0, DType::q6_k};

/// A stream that does not wait for the null stream, as the engine's.
class Stream {
 public:
  Stream() { NVL_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~Stream() { static_cast<void>(cudaStreamDestroy(stream_)); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

template <class T>
void check_equal(const std::vector<T>& values, const RandomTensor& random) {
  const std::vector<double> expected(random.floats().begin(), random.floats().end());
  CHECK(nvl::reference::nmse(values, expected) <=
        (expected.size() < 1000 ? nvl::reference::max_nmse_of_few<T> : nvl::reference::max_nmse<T>));
}

/// A file of `pages` pages in memory, as a checkpoint maps it.
class MappedPages {
 public:
  MappedPages(const std::filesystem::path& path, std::size_t pages)
      : size_(pages * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE))) {
    file_ = ::open(path.c_str(), O_CREAT | O_RDWR, 0600);
    REQUIRE(file_ >= 0);
    REQUIRE(::ftruncate(file_, static_cast<::off_t>(size_)) == 0);
    address_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file_, 0);
    REQUIRE(address_ != MAP_FAILED);
  }
  ~MappedPages() {
    ::munmap(address_, size_);
    ::close(file_);
  }
  MappedPages(const MappedPages&) = delete;
  MappedPages& operator=(const MappedPages&) = delete;
  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(address_), size_}; }
  void truncate() { REQUIRE(::ftruncate(file_, 0) == 0); }

 private:
  int file_ = -1;
  std::size_t size_;
  void* address_ = nullptr;
};

}  // namespace

TEMPLATE_TEST_CASE("Tensors of every type arrive in the engine's type, however small the pieces", "[ops][gpu]", bf16, fp16,
                   float) {
  nvl_test::require_device();
  const Stream stream;
  for (const UploadOptions options : {UploadOptions{.staging_bytes = 16384, .num_threads = 2},
                                      UploadOptions{.staging_bytes = 24576, .num_threads = 3}, UploadOptions{}}) {
    CAPTURE(options.staging_bytes, options.num_threads);
    std::vector<std::unique_ptr<RandomTensor>> tensors;
    std::vector<DeviceVector<TestType>> outs;
    for (const DType type : some_types) {
      for (const std::int64_t rows : {1, 3, 300}) {
        tensors.push_back(std::make_unique<RandomTensor>(type, std::vector<std::int64_t>{rows, 256}, rows));
        outs.emplace_back(tensors.back()->floats().size() + 8);
      }
    }
    WeightUploader uploader(stream, options);
    for (std::size_t i = 0; i < tensors.size(); ++i) { uploader.upload(tensors[i]->tensor(), outs[i].data()); }
    uploader.finish();
    NVL_CUDA_CHECK(cudaStreamSynchronize(stream));
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      CAPTURE(nvl::info(tensors[i]->tensor().dtype).name, tensors[i]->floats().size());
      std::vector<TestType> values = outs[i].to_host();
      const std::vector<std::uint8_t> untouched(8 * sizeof(TestType), 0xff);
      CHECK(std::memcmp(values.data() + values.size() - 8, untouched.data(), untouched.size()) == 0);
      values.resize(values.size() - 8);
      check_equal(values, *tensors[i]);
    }
  }
}

TEST_CASE("A tensor may begin at any byte, and an uploader is used again after it finished", "[ops][gpu]") {
  nvl_test::require_device();
  const Stream stream;
  WeightUploader uploader(stream, {.staging_bytes = 65536, .num_threads = 2});
  for (const DType type : {DType::float32, DType::bfloat16, DType::q4_1}) {
    for (const std::size_t offset : {std::size_t{1}, std::size_t{3}, std::size_t{7}}) {
      const RandomTensor random(type, {70, 320}, 5);
      std::vector<std::byte> shifted(random.tensor().data.size() + offset);
      std::memcpy(shifted.data() + offset, random.tensor().data.data(), random.tensor().data.size());
      HostTensor tensor = random.tensor();
      tensor.data = std::span<const std::byte>(shifted).subspan(offset);
      DeviceVector<bf16> out(random.floats().size());
      uploader.upload(tensor, out.data());
      uploader.finish();
      NVL_CUDA_CHECK(cudaStreamSynchronize(stream));
      check_equal(out.to_host(), random);
    }
  }
  uploader.finish();  // with nothing to do
}

TEST_CASE("A tensor whose bytes are not those of its shape is refused and named", "[ops][gpu]") {
  nvl_test::require_device();
  const Stream stream;
  WeightUploader uploader(stream, {.staging_bytes = 65536, .num_threads = 1});
  DeviceVector<bf16> out(1024);
  const RandomTensor random(DType::q4_0, {4, 64}, 1);
  const auto refused = [&](auto&& spoil, const std::string& word) {
    HostTensor tensor = random.tensor();
    tensor.name = "model.embed";
    spoil(tensor);
    nvl_test::expect_error<nvl::InvalidArgument>([&] { uploader.upload(tensor, out.data()); }, {"model.embed", word});
  };
  refused([](HostTensor& t) { t.data = t.data.first(t.data.size() - 1); }, "bytes");
  refused([](HostTensor& t) { t.shape = {5, 64}; }, "bytes");
  refused([](HostTensor& t) { t.shape = {8, 32, -1}; }, "shape");
  refused([](HostTensor& t) { t.shape = {16, 16}; }, "whole blocks");
  refused([](HostTensor& t) { t.shape = {std::int64_t{1} << 40, std::int64_t{1} << 40}; }, "shape");
  refused([](HostTensor& t) { t.dtype = DType::int64; }, "type");
  HostTensor empty = random.tensor();
  empty.shape = {0, 64};
  empty.data = {};
  uploader.upload(empty, out.data());
  uploader.finish();
  NVL_CUDA_CHECK(cudaStreamSynchronize(stream));
  CHECK(std::isnan(static_cast<float>(out.to_host().front())));
}

TEST_CASE("A file that was truncated while it was in use is an error, not a signal", "[ops][gpu]") {
  nvl_test::require_device();
  const TempDir folder;
  MappedPages pages(folder.path() / "weights", 8);
  if (::madvise(const_cast<std::byte*>(pages.bytes().data()), 1, 22) != 0) {
    SKIP("this kernel cannot fault pages in on request");
  }
  const Stream stream;
  WeightUploader uploader(stream, {.staging_bytes = 1 << 20, .num_threads = 2});
  DeviceVector<bf16> out(pages.bytes().size() / 2);
  const HostTensor tensor{
      .name = "model.embed", .dtype = DType::bfloat16, .shape = {static_cast<std::int64_t>(out.size())}, .data = pages.bytes()};
  uploader.upload(tensor, out.data());
  uploader.finish();
  pages.truncate();
  uploader.upload(tensor, out.data());
  nvl_test::expect_error<nvl::FileError>([&] { uploader.finish(); }, {"model.embed", "truncated"});
  // The error was handed over; the uploader works on.
  const RandomTensor random(DType::float32, {4, 64}, 1);
  DeviceVector<bf16> other(256);
  uploader.upload(random.tensor(), other.data());
  uploader.finish();
  NVL_CUDA_CHECK(cudaStreamSynchronize(stream));
  check_equal(other.to_host(), random);
}

TEST_CASE("Unreasonable upload options are refused", "[ops][gpu]") {
  nvl_test::require_device();
  nvl_test::expect_error<nvl::InvalidArgument>([] { WeightUploader(nullptr, {.staging_bytes = 100, .num_threads = 1}); },
                                               {"staging_bytes"});
  nvl_test::expect_error<nvl::InvalidArgument>([] { WeightUploader(nullptr, {.num_threads = -1}); }, {"num_threads"});
}

TEST_CASE("An uploader that is destroyed with work left stops", "[ops][gpu]") {
  nvl_test::require_device();
  const Stream stream;
  const RandomTensor random(DType::float32, {4096, 256}, 1);
  DeviceVector<bf16> out(random.floats().size());
  {
    WeightUploader uploader(stream, {.staging_bytes = 16384, .num_threads = 2});
    for (int i = 0; i < 20; ++i) { uploader.upload(random.tensor(), out.data()); }
  }
  NVL_CUDA_CHECK(cudaStreamSynchronize(stream));
}
