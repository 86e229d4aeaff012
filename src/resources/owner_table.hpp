// SPDX-License-Identifier: Apache-2.0
//
// The owners, by name and in the order in which they acquired.

#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <iterator>
#include <string_view>
#include <vector>

#include "resources/device_record.hpp"

namespace vmspace::detail {

/// An intrusive hash table: inserting allocates only when the table grows, erasing never does. It
/// does not own the records.
class OwnerTable {
 public:
  /// In the order in which they came.
  class Iterator {
   public:
    using iterator_category = std::forward_iterator_tag;
    using value_type = const DeviceRecord*;
    using difference_type = std::ptrdiff_t;
    using pointer = const value_type*;
    using reference = value_type;

    Iterator() = default;
    explicit Iterator(const DeviceRecord* record) noexcept : record_(record) {}

    [[nodiscard]] const DeviceRecord* operator*() const noexcept { return record_; }
    Iterator& operator++() noexcept {
      record_ = record_->after;
      return *this;
    }
    Iterator operator++(int) noexcept {
      const Iterator here = *this;
      ++*this;
      return here;
    }
    friend bool operator==(const Iterator&, const Iterator&) = default;

   private:
    const DeviceRecord* record_ = nullptr;
  };

  [[nodiscard]] Iterator begin() const noexcept { return Iterator(first_); }
  [[nodiscard]] Iterator end() const noexcept { return Iterator(); }

  /// Returns false if the name is taken. Strong guarantee on std::bad_alloc. Amortised O(1).
  [[nodiscard]] bool insert(DeviceRecord& record) {
    if (size_ == buckets_.size()) grow();
    DeviceRecord*& bucket = bucket_of(record);
    for (const DeviceRecord* other = bucket; other != nullptr; other = other->next_in_bucket) {
      if (other->hash == record.hash && other->owner == record.owner) return false;
    }
    record.next_in_bucket = bucket;
    bucket = &record;
    record.before = last_;
    record.after = nullptr;
    (last_ != nullptr ? last_->after : first_) = &record;
    last_ = &record;
    ++size_;
    return true;
  }

  /// The owner of this name; null when there is none. O(1).
  [[nodiscard]] const DeviceRecord* find(std::string_view owner) const noexcept {
    if (buckets_.empty()) return nullptr;
    const std::size_t hash = std::hash<std::string_view>()(owner);
    const DeviceRecord* record = buckets_[hash & (buckets_.size() - 1)];
    while (record != nullptr && (record->hash != hash || record->owner != owner))
      record = record->next_in_bucket;
    return record;
  }

  /// `record` must be in the table. O(1).
  void erase(DeviceRecord& record) noexcept {
    DeviceRecord** link = &bucket_of(record);
    while (*link != &record)
      link = &(*link)->next_in_bucket;
    *link = record.next_in_bucket;
    (record.before != nullptr ? record.before->after : first_) = record.after;
    (record.after != nullptr ? record.after->before : last_) = record.before;
    --size_;
  }

 private:
  /// There are 2^k buckets.
  [[nodiscard]] DeviceRecord*& bucket_of(const DeviceRecord& record) noexcept {
    return buckets_[record.hash & (buckets_.size() - 1)];
  }

  void grow() {
    constexpr std::size_t least = 16;
    std::vector<DeviceRecord*> larger(std::max(least, 2 * buckets_.size()), nullptr);
    buckets_.swap(larger);
    for (DeviceRecord* record = first_; record != nullptr; record = record->after) {
      DeviceRecord*& bucket = bucket_of(*record);
      record->next_in_bucket = bucket;
      bucket = record;
    }
  }

  std::vector<DeviceRecord*> buckets_;
  std::size_t size_ = 0;
  DeviceRecord* first_ = nullptr;
  DeviceRecord* last_ = nullptr;
};

}  // namespace vmspace::detail
