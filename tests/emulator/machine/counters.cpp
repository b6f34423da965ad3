#include "machine/counters.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <unordered_map>

namespace emulator {

namespace {

struct Access {
  int lane;
  uint64_t address;
  int bytes;
};

struct Totals {
  int64_t instructions = 0, bytes = 0, taken = 0, least = 0;
};

struct Place {
  Kind kind;
  bool shared;
  Site site;
  bool operator<(const Place& other) const {
    return std::tuple(kind, shared, site.file, site.line) <
           std::tuple(other.kind, other.shared, other.site.file, other.site.line);
  }
};

// What the lanes of a warp did at a place, an instruction for each time they came there.
struct Visits {
  int times[kWarp] = {};
  std::vector<std::vector<Access>> instructions;
};

std::map<std::pair<Place, int>, Visits> visits;  // by place and warp, of the running block
std::map<Place, Totals> totals;
std::map<std::string, int64_t> instructions;

void note(const Place& place, uint64_t address, int bytes) {
  const Thread& t = thread();
  Visits& visit = visits[{place, t.warp()}];
  const auto time = size_t(visit.times[t.lane()]++);
  if (time >= visit.instructions.size()) visit.instructions.resize(time + 1);
  visit.instructions[time].push_back({t.lane(), address, bytes});
}

// Bytes that the instruction moves: where several lanes want the same, it moves once.
int64_t distinct_bytes(const std::vector<Access>& lanes) {
  std::set<uint64_t> words;
  for (const Access& lane : lanes) {
    for (int i = 0; i < lane.bytes; i += 2) words.insert((lane.address + i) / 2);
  }
  return int64_t(words.size()) * 2;
}

int64_t sectors_of(const std::vector<Access>& lanes) {
  std::set<uint64_t> sectors;
  for (const Access& lane : lanes) sectors.insert(lane.address / 32);
  return int64_t(sectors.size());
}

// Lanes are served 128 bytes at a time: all at once with 4 bytes each, 8 with 16. Words in one bank
// take one pass each, the same word is served to all.
int64_t passes_of(const std::vector<Access>& lanes, int64_t* least) {
  const int at_once = 128 / lanes.front().bytes;
  int64_t passes = 0;
  *least = 0;
  for (int first = 0; first < kWarp; first += at_once) {
    std::map<uint64_t, std::set<uint64_t>> words_of_bank;
    for (const Access& lane : lanes) {
      if (lane.lane < first || lane.lane >= first + at_once) continue;
      for (int i = 0; i < lane.bytes; i += 4) {
        const uint64_t word = (lane.address + i) / 4;
        words_of_bank[word % 32].insert(word);
      }
    }
    size_t most = 0;
    for (const auto& [bank, words] : words_of_bank) most = std::max(most, words.size());
    passes += int64_t(most);
    *least += most > 0;
  }
  return passes;
}

const char* name(const Place& place) {
  switch (place.kind) {
    case Kind::kGlobalLoad:
      return "global load";
    case Kind::kGlobalStore:
      return "global store";
    case Kind::kCopy:
      return place.shared ? "copy to shared" : "copy from global";
    case Kind::kSharedLoad:
      return "shared load";
    case Kind::kSharedStore:
      return "shared store";
    case Kind::kMatrixLoad:
      return "ldmatrix";
  }
  return "?";
}

}  // namespace

void count_global(Kind kind, uint64_t address, int bytes, Site site) {
  note({kind, false, site}, address, bytes);
}

void count_shared(Kind kind, uint32_t address, int bytes, Site site) {
  note({kind, true, site}, address, bytes);
}

void count_instruction(const char* what) { ++instructions[what]; }

void settle_counters() {
  for (const auto& [key, visit] : visits) {
    Totals& total = totals[key.first];
    for (const std::vector<Access>& lanes : visit.instructions) {
      int64_t least;
      ++total.instructions;
      total.bytes += distinct_bytes(lanes);
      if (key.first.shared) {
        total.taken += passes_of(lanes, &least);
      } else {
        total.taken += sectors_of(lanes);
        least = (distinct_bytes(lanes) + 31) / 32;
      }
      total.least += least;
    }
  }
  visits.clear();
}

void clear_counters() {
  visits.clear();
  totals.clear();
  instructions.clear();
}

std::string counters_json() {
  std::string text = "{\"instructions\": {", separator;
  for (const auto& [what, count] : instructions) {
    text += separator + "\"" + what + "\": " + std::to_string(count);
    separator = ", ";
  }
  text += "}, \"accesses\": [";
  separator.clear();
  for (const auto& [place, total] : totals) {
    text += separator + "{\"kind\": \"" + name(place) + "\", \"site\": \"" + place.site.text() +
            "\", \"instructions\": " + std::to_string(total.instructions) +
            ", \"bytes\": " + std::to_string(total.bytes) +
            ", \"taken\": " + std::to_string(total.taken) +
            ", \"least\": " + std::to_string(total.least) + "}";
    separator = ", ";
  }
  return text + "]}";
}

}  // namespace emulator
