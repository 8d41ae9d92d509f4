// Round trips in every type and through hyperslabs, a file made by the reference implementation, and malformed files.
#include "infer/safetensors.h"

#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <cstring>
#include <limits>
#include <random>

#include "framework/files.h"
#include "tests/framework/expected_errors.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen {
namespace {

namespace fs = std::filesystem;
using namespace testing_support;

std::string file_text(const std::string& header, std::size_t data_bytes) {
  std::uint64_t length = header.size();
  std::string text(sizeof(length), '\0');
  std::memcpy(text.data(), &length, sizeof(length));
  return text + header + std::string(data_bytes, '\1');
}

std::string refusal_of(const std::string& content) {
  const TemporaryFolder folder;
  write_text_atomically(folder.path() / "x.safetensors", content);
  const std::string message =
      message_of<UserError>([&] { const SafetensorsReader reader(folder.path() / "x.safetensors"); });
  expect_mentions(message, {"x.safetensors", "->"});
  return message;
}

std::string refusal_of_header(const std::string& header, std::size_t data_bytes = 8) {
  return refusal_of(file_text(header, data_bytes));
}

template <class T>
Tensor view(std::vector<T>& values, const Shape& shape) {
  return Tensor(values.data(), dtype_of<T>, shape);
}

// Written by the Python package safetensors 0.8.0 with numpy. {"a.i64": [1, -2], "scalar": 7.0, "b.f32": [[0, .25, .5],
// [.75, 1, 1.25]], "empty": shape (0, 3), "c.f16": [1.5, -.25, 65504], "u8": [1, 2, 255]}, metadata {"format": "pt"}.
std::string reference_file() {
  std::string header = R"({"__metadata__":{"format":"pt"},"a.i64":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},)"
                       R"("scalar":{"dtype":"F64","shape":[],"data_offsets":[16,24]},)"
                       R"("b.f32":{"dtype":"F32","shape":[2,3],"data_offsets":[24,48]},)"
                       R"("empty":{"dtype":"F32","shape":[0,3],"data_offsets":[48,48]},)"
                       R"("c.f16":{"dtype":"F16","shape":[3],"data_offsets":[48,54]},)"
                       R"("u8":{"dtype":"U8","shape":[3],"data_offsets":[54,57]}})"
                       "       ";
  const std::string hex =
      "0100000000000000feffffffffffffff0000000000001c40000000000000803e0000003f0000403f0000803f0000a03f003e00b4ff7b0102"
      "ff";
  std::string data;
  for (std::size_t i = 0; i < hex.size(); i += 2) data += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return file_text(header, 0) + data;
}

TEST(Safetensors, AFileOfTheReferenceImplementation) {
  const TemporaryFolder folder;
  write_text_atomically(folder.path() / "x.safetensors", reference_file());
  const SafetensorsReader reader(folder.path() / "x.safetensors");
  EXPECT_EQ(reader.metadata(), (std::map<std::string, std::string>{{"format", "pt"}}));
  EXPECT_EQ(reader.names(), (std::vector<std::string>{"a.i64", "b.f32", "c.f16", "empty", "scalar", "u8"}));
  EXPECT_EQ(reader.tensor("b.f32").shape, (Shape{2, 3}));
  EXPECT_EQ(reader.tensor("c.f16").dtype, "F16");

  std::vector<double> matrix(6, NAN), halves(3, NAN), scalar(1, NAN);
  reader.read("b.f32", {0, 0}, view(matrix, {2, 3}));
  reader.read("c.f16", {0}, view(halves, {3}));
  reader.read("scalar", {}, view(scalar, {}));
  EXPECT_EQ(matrix, (std::vector<double>{0, 0.25, 0.5, 0.75, 1, 1.25}));
  EXPECT_EQ(halves, (std::vector<double>{1.5, -0.25, 65504}));
  EXPECT_EQ(scalar[0], 7.0);
  std::vector<std::int64_t> integers(2, 0);
  std::vector<std::uint8_t> bytes(2, 0);
  reader.read("a.i64", {0}, view(integers, {2}));
  reader.read("u8", {1}, view(bytes, {2}));
  EXPECT_EQ(integers, (std::vector<std::int64_t>{1, -2}));
  EXPECT_EQ(bytes, (std::vector<std::uint8_t>{2, 255}));
  std::vector<float> nothing;
  reader.read("empty", {0, 0}, Tensor(nothing.data(), DType::fp32, {0, 3}));

  std::vector<float> floats(2, NAN);
  expect_mentions(message_of<UserError>([&] { reader.read("a.i64", {0}, view(floats, {2})); }),
                  {"a.i64", "I64", "fp32"});
  expect_mentions(message_of<UserError>([&] { reader.read("b.f23", {0}, view(floats, {2})); }),
                  {"b.f23", "it has b.f32"});
  EXPECT_THROW(reader.read("c.f16", {2}, view(floats, {2})), InternalError);
}

std::int64_t pick(std::mt19937_64& generator, std::int64_t least, std::int64_t most) {
  return std::uniform_int_distribution<std::int64_t>(least, most)(generator);
}

// A strided, poisoned window of `shape`, and the whole that it lies in.
template <class T>
struct Window {
  std::vector<T> whole;
  Tensor tensor;
  Window(const Shape& shape, std::int64_t padding) {
    Shape enclosing = shape;
    for (std::int64_t& extent : enclosing) extent += 2 * padding;
    whole.assign(static_cast<std::size_t>(elements_of(enclosing)), std::numeric_limits<T>::quiet_NaN());
    tensor = Tensor(whole.data(), dtype_of<T>, enclosing);
    for (int d = 0; d < tensor.rank(); ++d) {
      tensor = tensor.slice(d, padding, padding + shape[static_cast<std::size_t>(d)]);
    }
  }
  T& at(const std::vector<std::int64_t>& place) {
    std::int64_t distance = 0;
    for (int d = 0; d < tensor.rank(); ++d) distance += place[static_cast<std::size_t>(d)] * tensor.stride(d);
    return tensor.as<T>()[distance];
  }
};

template <class F>
void for_each_place(const Shape& shape, F&& f) {
  std::vector<std::int64_t> place(shape.size(), 0);
  for (std::int64_t i = 0; i < elements_of(shape); ++i) {
    std::int64_t rest = i;
    for (std::size_t d = shape.size(); d-- > 0; rest /= shape[d]) place[d] = rest % shape[d];
    f(place);
  }
}

// Small integers over 8: exact in every floating-point type.
double value_at(const Shape& shape, const std::vector<std::int64_t>& place) {
  std::int64_t index = 0;
  for (std::size_t d = 0; d < shape.size(); ++d) index = index * shape[d] + place[d];
  return static_cast<double>((index * 37) % 251 - 125) / 8.0;
}

template <class T>
void write_part(SafetensorsWriter& writer, const SafetensorsTensor& tensor, const std::vector<std::int64_t>& offset,
                const Shape& shape, std::int64_t padding) {
  Window<T> window(shape, padding);
  for_each_place(shape, [&](std::vector<std::int64_t> place) {
    T& cell = window.at(place);
    for (std::size_t d = 0; d < place.size(); ++d) place[d] += offset[d];
    cell = static_cast<T>(value_at(tensor.shape, place));
  });
  writer.write(tensor.name, offset, window.tensor);
}

template <class T>
void expect_part(const SafetensorsReader& reader, const SafetensorsTensor& tensor, std::mt19937_64& generator) {
  std::vector<std::int64_t> offset;
  Shape shape;
  for (const std::int64_t extent : tensor.shape) {
    offset.push_back(pick(generator, 0, extent - 1));
    shape.push_back(pick(generator, 1, extent - offset.back()));
    if (pick(generator, 0, 2) == 0) offset.back() = 0, shape.back() = extent;  // whole dimensions make longer runs
  }
  Window<T> window(shape, pick(generator, 0, 2));
  reader.read(tensor.name, offset, window.tensor);
  std::int64_t wrong = 0, written = 0;
  for_each_place(shape, [&](std::vector<std::int64_t> place) {
    const T found = window.at(place);
    for (std::size_t d = 0; d < place.size(); ++d) place[d] += offset[d];
    wrong += !(static_cast<double>(found) == value_at(tensor.shape, place));
  });
  for (const T x : window.whole) written += !std::isnan(x);
  EXPECT_EQ(wrong, 0) << tensor.name << " " << to_string(shape) << " at " << to_string(offset);
  EXPECT_EQ(written, elements_of(shape)) << tensor.name;
}

TEST(Safetensors, RoundTripThroughRandomHyperslabs) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "x.safetensors";
  std::mt19937_64 generator(4);
  std::vector<SafetensorsTensor> tensors;
  for (const char* dtype : {"F16", "F64", "BF16", "F32"}) {
    for (const Shape& shape : {Shape{}, Shape{13}, Shape{7, 11}, Shape{3, 1, 5}, Shape{4, 3, 2, 5}, Shape{300, 1000}}) {
      tensors.push_back({fmt::format("{}.\"{}\"", dtype, to_string(shape)), dtype, shape});
    }
  }
  SafetensorsWriter writer(path, tensors, {{"format", "pt"}, {"note", "a \"quoted\" word"}});
  for (const SafetensorsTensor& tensor : tensors) {
    if (tensor.shape.empty()) {
      write_part<float>(writer, tensor, {}, {}, 0);
      continue;
    }
    const std::int64_t extent = tensor.shape[0], cut = pick(generator, 1, extent - 1);  // in two parts, the later first
    Shape shape = tensor.shape;
    std::vector<std::int64_t> offset(shape.size(), 0);
    offset[0] = cut, shape[0] = extent - cut;
    write_part<double>(writer, tensor, offset, shape, pick(generator, 0, 2));
    offset[0] = 0, shape[0] = cut;
    write_part<float>(writer, tensor, offset, shape, pick(generator, 0, 2));
  }
  EXPECT_FALSE(fs::exists(path));
  writer.close();

  const SafetensorsReader reader(path);
  EXPECT_EQ(reader.metadata().at("note"), "a \"quoted\" word");
  EXPECT_EQ(reader.names().size(), tensors.size());
  for (const SafetensorsTensor& tensor : tensors) {
    EXPECT_EQ(reader.tensor(tensor.name).shape, tensor.shape);
    EXPECT_EQ(reader.tensor(tensor.name).dtype, tensor.dtype);
    for (int i = 0; i < 6; ++i) {
      expect_part<float>(reader, tensor, generator);
      expect_part<double>(reader, tensor, generator);
    }
  }
}

TEST(Safetensors, NarrowTypesAreKeptBitByBit) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "x.safetensors";
  std::vector<std::uint16_t> bits{0x3f80, 0x7fc1, 0x8000, 0x0001}, back(4, 0);
  SafetensorsWriter writer(path, {{"x", safetensors_dtype(DType::bf16), {4}}});
  writer.write("x", {0}, Tensor(bits.data(), DType::bf16, {4}));
  writer.close();
  SafetensorsReader(path).read("x", {0}, Tensor(back.data(), DType::bf16, {4}));
  EXPECT_EQ(back, bits);
}

TEST(Safetensors, HeadersThatWouldTakeTheMachine) {
  expect_mentions(refusal_of_header("{\"a\":" + std::string(300'000, '[')), {"64 deep"});
  expect_mentions(refusal_of_header("{\"a\":[" + std::string(90'000'000, ' ') + "]}"), {"header of 90000008 bytes"});
  expect_mentions(refusal_of_header(R"({"x":{"dtype":"F32","shape":[4611686018427387904,0],"data_offsets":[0,0]}})", 0),
                  {"too large"});
}

TEST(Safetensors, AnUnfinishedFileLeavesNothing) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "x.safetensors";
  {
    SafetensorsWriter writer(path, {{"x", "F32", {4}}, {"y", "F32", {4}}});
    std::vector<float> values(4, 1.0F);
    writer.write("x", {0}, view(values, {4}));
    EXPECT_THROW(writer.write("z", {0}, view(values, {4})), InternalError);
    expect_mentions(message_of<InternalError>([&] { writer.close(); }), {"y"});
  }
  EXPECT_TRUE(fs::is_empty(folder.path()));
  EXPECT_THROW(SafetensorsWriter(path, {{"x", "F32", {4}}, {"x", "F32", {4}}}), InternalError);
  EXPECT_THROW(SafetensorsWriter(path, {{"x", "F4", {4}}}), InternalError);
  expect_mentions(message_of<UserError>([&] { SafetensorsWriter(folder.path() / "no" / "x", {}); }),
                  {"cannot be written"});
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(Safetensors, AFullDiskIsAUserError) {
  const TemporaryFolder folder;
  const auto previous_handler = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit previous {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &previous), 0);
  const struct rlimit limit { 1000, previous.rlim_max };
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  const std::string message = message_of<UserError>([&] {
    SafetensorsWriter(folder.path() / "x.safetensors", {{"x", "F32", {1000}}});
  });
  ::setrlimit(RLIMIT_FSIZE, &previous);
  std::signal(SIGXFSZ, previous_handler);
  expect_mentions(message, {"x.safetensors", "cannot be written", "->"});
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(Safetensors, LengthsThatCannotBe) {
  const std::string good = reference_file();
  for (std::size_t bytes = 0; bytes < good.size(); bytes += 7) refusal_of(good.substr(0, bytes));
  expect_mentions(refusal_of(good.substr(0, good.size() - 1)), {"u8", "cut short"});
  expect_mentions(refusal_of(good + "x"), {"belong to no tensor"});
  expect_mentions(refusal_of("short"), {"5 bytes"});
  expect_mentions(refusal_of(std::string(64, '\xff')), {"no safetensors file"});
  expect_mentions(refusal_of(std::string(64, '\0')), {"no safetensors file"});
  expect_mentions(refusal_of("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
                  {"Git LFS pointer", "git lfs pull"});
}

TEST(Safetensors, HeadersThatAreNoHeaders) {
  expect_mentions(refusal_of_header("[1, 2]"), {"'{'"});
  expect_mentions(refusal_of_header(R"({"x": )"), {"not valid JSON"});
  expect_mentions(refusal_of_header(R"({"x": 1} trailing)"), {"not valid JSON"});
  expect_mentions(refusal_of_header(R"({"x": 1})"), {"tensor x", "dtype, shape and data_offsets"});
  expect_mentions(refusal_of_header(R"({"x": {"dtype":"F32","shape":[2]}})"), {"tensor x", "data_offsets"});
  expect_mentions(refusal_of_header(R"({"x": {"dtype":"F99","shape":[2],"data_offsets":[0,8]}})"), {"'F99'", "BF16"});
  expect_mentions(refusal_of_header(R"({"x": {"dtype":7,"shape":[2],"data_offsets":[0,8]}})"), {"tensor x", "dtype"});
  expect_mentions(refusal_of_header(R"({"x": {"dtype":"F32","shape":2,"data_offsets":[0,8]}})"), {"tensor x", "shape"});
  expect_mentions(refusal_of_header(R"({"x": {"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})"), {"-2"});
  expect_mentions(refusal_of_header(R"({"x": {"dtype":"F32","shape":[2.5],"data_offsets":[0,8]}})"), {"2.5"});
  expect_mentions(refusal_of_header(R"({"x": {"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}})"), {"two numbers"});
  expect_mentions(refusal_of_header(R"({"x": {"dtype":"F32","shape":[2],"data_offsets":[8,0]}})"), {"bytes 8 to 0"});
  expect_mentions(refusal_of_header(R"({"__metadata__": {"a": 1}})"), {"__metadata__", "'a'"});
  expect_mentions(refusal_of_header(R"({"__metadata__": []})"), {"__metadata__"});
}

TEST(Safetensors, PlacesThatDoNotFit) {
  expect_mentions(refusal_of_header(R"({"x": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 7),
                  {"bytes 0 to 8", "there are 7"});
  expect_mentions(refusal_of_header(R"({"x": {"dtype":"F32","shape":[3],"data_offsets":[0,8]}})"),
                  {"has 8 bytes", "needs 12"});
  expect_mentions(refusal_of_header(R"({"x": {"dtype":"F4","shape":[3],"data_offsets":[0,8]}})"), {"no whole bytes"});
  expect_mentions(
      refusal_of_header(
          R"({"x": {"dtype":"F32","shape":[4611686018427387904,4611686018427387904],"data_offsets":[0,8]}})"),
      {"too large"});
  expect_mentions(refusal_of_header(R"({"x": {"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8]}})"),
                  {"too large"});
  expect_mentions(refusal_of_header(R"({"x":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},)"
                                    R"("y":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})"),
                  {"x and y overlap"});
  expect_mentions(refusal_of_header(R"({"x":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
                                    R"("y":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})"),
                  {"bytes 3 to 4", "no tensor"});
  expect_mentions(refusal_of_header(R"({"x":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},)"
                                    R"("x":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})"),
                  {"'x'", "twice"});
  expect_mentions(refusal_of_header(R"({"x":{"dtype":"U8","dtype":"I8","shape":[8],"data_offsets":[0,8]}})"),
                  {"'dtype'", "twice"});
}

TEST(Safetensors, NoFile) {
  expect_mentions(message_of<UserError>([] { SafetensorsReader("/no/such.safetensors"); }),
                  {"/no/such.safetensors", "No such file"});
  expect_mentions(message_of<UserError>([] { SafetensorsReader("/tmp"); }), {"/tmp"});
}

}  // namespace
}  // namespace fulmen
