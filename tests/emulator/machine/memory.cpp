#include "machine/memory.h"

#include <algorithm>
#include <cstring>

#include "machine/counters.h"

namespace emulator {

// ---- global memory
// ---------------------------------------------------------------------------------

namespace {

// A thread of a launch. Launches are counted from 1 on; they are ordered, and within one nothing is
// between its blocks.
struct Who {
  uint32_t launch = 0;
  int thread = 0;
  int64_t block = 0;

  bool operator==(const Who& other) const {
    return launch == other.launch && block == other.block && thread == other.thread;
  }
  std::string text() const {
    return "thread " + std::to_string(thread) + " of block " + std::to_string(block);
  }
};

// What is known of two bytes of global memory that launches may write.
struct Place {
  Who writer, reader;  // the last ones
};

struct Buffer {
  std::string name;  // a copy: Python frees its own
  uint8_t* begin;
  int64_t bytes;
  bool written;  // by launches, else only read
  std::vector<Place> places;
};

std::vector<Buffer> buffers;
uint32_t launches = 0;

bool of_this_launch(const Who& who) { return who.launch == launches; }

Who whoami() {
  const Block& b = block();
  const int64_t number = (int64_t(b.index.z) * b.grid.y + b.index.y) * b.grid.x + b.index.x;
  return {launches, thread().number, number};
}

std::string at_byte(size_t place, const Buffer& buffer) {
  return buffer.name + " at byte " + std::to_string(2 * place);
}

Buffer& buffer_at(const void* address, int bytes, const char* action, Site site) {
  const auto* at = static_cast<const uint8_t*>(address);
  if (reinterpret_cast<uintptr_t>(at) % bytes != 0) {
    fail(std::string(action) + " of " + std::to_string(bytes) +
             " bytes of global memory at an address that is no multiple of that",
         site);
  }
  for (Buffer& buffer : buffers) {
    if (at >= buffer.begin && at + bytes <= buffer.begin + buffer.bytes) return buffer;
  }
  std::string nearest = "far from every buffer";
  for (const Buffer& buffer : buffers) {
    const int64_t offset = at - buffer.begin;
    if (offset >= -4096 && offset <= buffer.bytes + 4096) {
      nearest = "at byte " + std::to_string(offset) + " of " + buffer.name + ", which has " +
                std::to_string(buffer.bytes);
    }
  }
  fail(std::string(action) + " of " + std::to_string(bytes) + " bytes of global memory " + nearest,
       site);
}

}  // namespace

void read_global(const void* from, void* to, int bytes, Site site) {
  Buffer& buffer = buffer_at(from, bytes, "read", site);
  if (buffer.written) {
    const auto first = size_t(static_cast<const uint8_t*>(from) - buffer.begin) / 2;
    for (size_t i = first; i < first + size_t(bytes + 1) / 2; ++i) {
      Place& place = buffer.places[i];
      if (place.writer.launch == 0) {
        fail("read of " + at_byte(i, buffer) + ", which nobody has written", site);
      }
      // Not even its own thread: loads are of data that no thread of the launch writes.
      if (of_this_launch(place.writer)) {
        fail("race: read of " + at_byte(i, buffer) + ", which " + place.writer.text() +
                 " writes in the same launch",
             site);
      }
      place.reader = whoami();
    }
  }
  std::memcpy(to, from, bytes);
}

void write_global(void* to, const void* from, int bytes, Site site) {
  Buffer& buffer = buffer_at(to, bytes, "write", site);
  if (!buffer.written) fail(std::string("write to ") + buffer.name + ", an input", site);
  const auto first = size_t(static_cast<uint8_t*>(to) - buffer.begin) / 2;
  for (size_t i = first; i < first + size_t(bytes + 1) / 2; ++i) {
    Place& place = buffer.places[i];
    if (of_this_launch(place.writer) && !(place.writer == whoami())) {
      fail("race: write of " + at_byte(i, buffer) + ", which " + place.writer.text() +
               " writes in the same launch",
           site);
    }
    if (of_this_launch(place.reader)) {
      fail("race: write of " + at_byte(i, buffer) + ", which " + place.reader.text() +
               " reads in the same launch",
           site);
    }
    place.writer = whoami();
  }
  std::memcpy(to, from, bytes);
}

// ---- shared memory
// ---------------------------------------------------------------------------------

namespace {

std::vector<uint8_t> bytes_of_block;
std::vector<Cell> cells;

uint32_t warp_epoch() { return block().warp_epochs[size_t(thread().warp())]; }

std::string at_byte(uint32_t at) {
  return "shared memory at byte " + std::to_string(int64_t(at) - kSharedBase);
}

void check_place(uint32_t at, int bytes, const char* action, Site site) {
  if (at % bytes != 0) {
    fail(std::string(action) + " of " + std::to_string(bytes) + " bytes of " + at_byte(at) +
             ", no multiple of that",
         site);
  }
  if (at < kSharedBase || at + uint32_t(bytes) > bytes_of_block.size()) {
    fail(std::string(action) + " of " + std::to_string(bytes) + " bytes of " + at_byte(at) +
             ", of which the block has " + std::to_string(bytes_of_block.size() - kSharedBase),
         site);
  }
}

// Whether what a thread of `warp` did at those epochs is over for the running thread.
bool ordered(int warp, uint32_t epoch, uint32_t its_warp_epoch) {
  if (epoch != block().epoch) return true;
  return warp == thread().warp() && its_warp_epoch != warp_epoch();
}

void check_not_copied_to(const Cell& cell, uint32_t at, const char* action, Site site) {
  if (cell.copier == Cell::kNobody) return;
  fail(std::string(action) + " of " + at_byte(at) + ", where the cp.async of thread " +
           std::to_string(cell.copier) + " is under way: it was not waited for",
       site);
}

void note_read(uint32_t at, int bytes, bool for_warp, Site site) {
  const int me = thread().number;
  for (uint32_t i = at / 4; i < (at + bytes + 3) / 4; ++i) {
    Cell& cell = cells[i];
    check_not_copied_to(cell, i * 4, "read", site);
    if (cell.writer == Cell::kNobody) {
      fail("read of " + at_byte(i * 4) + ", which nobody has written", site);
    }
    const bool own = cell.writer == me && !for_warp;
    if (!own && !ordered(cell.writer / kWarp, cell.write_epoch, cell.write_warp_epoch)) {
      fail("race: read of " + at_byte(i * 4) + ", which thread " + std::to_string(cell.writer) +
               " wrote, without a barrier between them",
           site);
    }
    const bool first = cell.reader == Cell::kNobody || cell.read_epoch != block().epoch;
    const int reader = for_warp ? Cell::kSeveral : me;
    if (first) {
      cell.reader = reader;
      cell.reading_warp = thread().warp();
    } else {
      if (cell.reader != reader) cell.reader = Cell::kSeveral;
      if (cell.reading_warp != thread().warp()) cell.reading_warp = Cell::kSeveral;
    }
    cell.read_epoch = block().epoch;
    cell.read_warp_epoch = warp_epoch();
  }
}

void check_write(uint32_t at, int bytes, Site site) {
  const int me = thread().number;
  for (uint32_t i = at / 4; i < (at + bytes + 3) / 4; ++i) {
    Cell& cell = cells[i];
    check_not_copied_to(cell, i * 4, "write", site);
    if (cell.writer != Cell::kNobody && cell.writer != me &&
        !ordered(cell.writer / kWarp, cell.write_epoch, cell.write_warp_epoch)) {
      fail("race: write of " + at_byte(i * 4) + ", which thread " + std::to_string(cell.writer) +
               " wrote, without a barrier between them",
           site);
    }
    if (cell.reader != Cell::kNobody && cell.reader != me &&
        !ordered(cell.reading_warp, cell.read_epoch, cell.read_warp_epoch)) {
      fail("race: write of " + at_byte(i * 4) + ", which " +
               (cell.reader == Cell::kSeveral ? std::string("other threads")
                                              : "thread " + std::to_string(cell.reader)) +
               " read, without a barrier between them",
           site);
    }
  }
}

void note_write(uint32_t at, int bytes) {
  for (uint32_t i = at / 4; i < (at + bytes + 3) / 4; ++i) {
    cells[i].writer = thread().number;
    cells[i].write_epoch = block().epoch;
    cells[i].write_warp_epoch = warp_epoch();
  }
}

}  // namespace

void clear_shared(uint32_t bytes) {
  bytes_of_block.assign(kSharedBase + bytes, 0xFF);
  cells.assign((kSharedBase + bytes + 3) / 4, Cell{});
}

void read_shared(uint32_t from, void* to, int bytes, Site site) {
  check_place(from, bytes, "read", site);
  note_read(from, bytes, false, site);
  std::memcpy(to, &bytes_of_block[from], bytes);
}

void read_shared_for_warp(uint32_t from, void* to, int bytes, Site site) {
  check_place(from, bytes, "read", site);
  note_read(from, bytes, true, site);
  std::memcpy(to, &bytes_of_block[from], bytes);
}

void write_shared(uint32_t to, const void* from, int bytes, Site site) {
  check_place(to, bytes, "write", site);
  check_write(to, bytes, site);
  note_write(to, bytes);
  std::memcpy(&bytes_of_block[to], from, bytes);
}

// What it copies is there when it is waited for; until then nobody may touch the place.
void start_copy(uint32_t to, const void* from, bool inside, Site site) {
  Copy copy{to, {}, site};
  check_place(to, sizeof copy.bytes, "write", site);
  check_write(to, sizeof copy.bytes, site);
  if (inside) read_global(from, copy.bytes, sizeof copy.bytes, site);
  for (uint32_t i = to / 4; i < to / 4 + 4; ++i) cells[i].copier = thread().number;
  thread().open_copies.push_back(copy);
}

void commit_copies() {
  thread().pending_groups.push_back(std::move(thread().open_copies));
  thread().open_copies.clear();
}

void wait_for_copies(size_t pending) {
  auto& groups = thread().pending_groups;
  while (groups.size() > pending) {
    for (const Copy& copy : groups.front()) {
      std::memcpy(&bytes_of_block[copy.to], copy.bytes, sizeof copy.bytes);
      note_write(copy.to, sizeof copy.bytes);
      for (uint32_t i = copy.to / 4; i < copy.to / 4 + 4; ++i) cells[i].copier = Cell::kNobody;
    }
    groups.erase(groups.begin());
  }
}

void begin_launch() { ++launches; }

}  // namespace emulator

// ---- what tests call
// -------------------------------------------------------------------------------

extern "C" {

void emulator_forget_buffers() { emulator::buffers.clear(); }

// A buffer of exactly so many bytes, which launches may read; or, if so said, write, and read what
// an earlier one wrote.
void emulator_add_buffer(const char* name, void* begin, int64_t bytes, int written) {
  emulator::buffers.push_back({name, static_cast<uint8_t*>(begin), bytes, written != 0,
                               std::vector<emulator::Place>(written ? size_t(bytes + 1) / 2 : 0)});
}

// The block of the last launch that wrote there, as blocks are counted; -1 if none did.
int64_t emulator_writing_block(const void* address) {
  for (const emulator::Buffer& buffer : emulator::buffers) {
    const int64_t offset = static_cast<const uint8_t*>(address) - buffer.begin;
    if (!buffer.written || offset < 0 || offset >= buffer.bytes) continue;
    const emulator::Who& writer = buffer.places[size_t(offset) / 2].writer;
    return emulator::of_this_launch(writer) ? writer.block : -1;
  }
  return -1;
}

}  // extern "C"
