// What the engine needs of a device besides ops: memory, ordered execution, and recording of a fixed sequence of work.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace onerec {

// A block of device memory; freed on destruction. Aligned to kAlignment. Contents are undefined at first.
class Buffer {
 public:
  virtual ~Buffer() = default;
  virtual void* data() const = 0;
  virtual std::size_t bytes() const = 0;
};

// An ordered queue of work on a device.
class Stream {
 public:
  virtual ~Stream() = default;
  // Waits until everything issued so far has been done. Throws StateError if the device failed.
  virtual void synchronize() = 0;
  // Copies between host and device in stream order. The host memory must stay untouched until a synchronize().
  // On a recording stream the copy is recorded, with these addresses.
  virtual void copy_to_device(void* device, const void* host, std::size_t bytes) = 0;
  virtual void copy_to_host(void* host, const void* device, std::size_t bytes) = 0;
  // Sets `bytes` bytes of device memory to `value`, in stream order.
  virtual void fill(void* device, int value, std::size_t bytes) = 0;
  // From here on, work issued to this stream is recorded instead of done, until end_recording().
  virtual void begin_recording() = 0;
  virtual std::unique_ptr<class Recording> end_recording() = 0;
  // The device's own handle of this queue, such as a cudaStream_t, for measuring tools; 0 where there is none.
  virtual std::uintptr_t native_handle() const { return 0; }
  // Whether work may be begun before what was issued ahead of it has ended, as far as it does not depend on that; it
  // may unless said otherwise. Devices that never do ignore it.
  virtual void overlap_work(bool /*allowed*/) {}
  // Whether what is issued from here on takes long, op by op; it does not unless said otherwise. Long work is not begun
  // early.
  virtual void expect_long_work(bool /*expected*/) {}
  // A second line of work, which may run beside this one until join(): what is issued to it comes after all that was
  // issued here before. It takes ops, copies and fills, and lives as long as this stream. There is one branch at a
  // time: a fork and the end of a recording join what is not joined. To be joined before a synchronize() that is to
  // wait for it. Devices with a single line of work return this stream.
  virtual Stream& fork() { return *this; }
  // What is issued from here on comes after all that was issued here and to the branch.
  virtual void join() {}
  // Names the work issued until the matching end_range(), for profilers that watch the device; ranges nest.
  virtual void begin_range(const char* /*name*/) {}
  virtual void end_range() {}
};

// A recorded sequence of work: fixed addresses, fixed capacities; what varies is read from device memory.
class Recording {
 public:
  virtual ~Recording() = default;
  // Issues the whole sequence. Allocates nothing.
  virtual void replay(Stream& stream) = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;
  virtual std::unique_ptr<Buffer> allocate(std::size_t bytes) = 0;
  // Host memory that copies to and from the device fast.
  virtual std::unique_ptr<Buffer> allocate_pinned(std::size_t bytes) = 0;
  virtual std::unique_ptr<Stream> make_stream() = 0;
  // Bytes that could still be allocated.
  virtual std::size_t available_memory() const = 0;
};

}  // namespace onerec
