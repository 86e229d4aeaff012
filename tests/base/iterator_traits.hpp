// SPDX-License-Identifier: Apache-2.0
//
// What every iterator of the library is to be, by the concepts of C++20 and by the traits that
// C++17's algorithms choose by.

#pragma once

#include <iterator>
#include <type_traits>
#include <utility>

namespace vmspace::test {

template <typename I>
using OldTraits = std::iterator_traits<I>;

/// Steps in both directions, as seen by old code and new. `->` works; C++17 asks it of all.
template <typename I>
inline constexpr bool is_bidirectional = std::bidirectional_iterator<I>&& std::sentinel_for<I, I>&&
    std::is_nothrow_copy_constructible_v<I>&& std::is_base_of_v<
        std::bidirectional_iterator_tag, typename OldTraits<I>::iterator_category>&&
        std::is_same_v<typename OldTraits<I>::value_type, std::iter_value_t<I>>&&
            std::is_same_v<typename OldTraits<I>::reference, std::iter_reference_t<I>>&&
                std::is_same_v<typename OldTraits<I>::difference_type, std::iter_difference_t<I>>&&
                    std::is_same_v<typename OldTraits<I>::pointer,
                                   decltype(std::declval<const I&>().operator->())>&&
                        std::bidirectional_iterator<std::reverse_iterator<I>>;

}  // namespace vmspace::test
