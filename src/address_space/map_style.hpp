// SPDX-License-Identifier: Apache-2.0
//
// The colours of memory_map_svg(). Their hues are those of Okabe and Ito, which people see apart whatever
// kind of colour vision they have; every one stands beside a name as well.

#pragma once

#include <array>
#include <string_view>

namespace vmspace::detail {

/// Styles of everything in the picture by class, and a pattern. Renderers that know no dark pages take
/// the first set.
inline constexpr std::string_view map_style =
    R"svg(<style>
.vmspace-map text{font:12px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;fill:#1f2328}
.vmspace-map .title{font-size:15px;font-weight:600}
.vmspace-map .name{font-weight:600}
.vmspace-map .soft{fill:#59636e}
.vmspace-map .at{font:11px ui-monospace,'DejaVu Sans Mono',monospace;fill:#59636e}
.vmspace-map .page{fill:#ffffff}
.vmspace-map .fold{fill:none;stroke:#afb8c1}
.vmspace-map .scale{fill:none;stroke:#59636e}
.vmspace-map .frame{fill:#f6f8fa;stroke:#afb8c1}
.vmspace-map .ram{fill:#cfe3f3;stroke:#0072b2}
.vmspace-map .device{fill:#fbe6bd;stroke:#b87a00}
.vmspace-map .dax{fill:#c9ebdf;stroke:#008060}
.vmspace-map .firmware{fill:#f3d9e8;stroke:#a8457f}
.vmspace-map .other{fill:#e6e9ed;stroke:#59636e}
.vmspace-map .hatch{stroke:#afb8c1;stroke-width:2}
.vmspace-map .track{fill:#e6e9ed}
.vmspace-map .resident{fill:#6f42c1}
.vmspace-map .dirty{fill:#d55e00}
.vmspace-map .enlarged{stroke-dasharray:3 2}
@media (prefers-color-scheme:dark){
.vmspace-map text{fill:#f0f6fc}
.vmspace-map .soft,.vmspace-map .at{fill:#9ea7b3}
.vmspace-map .page{fill:#0d1117}
.vmspace-map .fold,.vmspace-map .hatch{stroke:#4a525c}
.vmspace-map .scale{stroke:#9ea7b3}
.vmspace-map .frame{fill:#151b23;stroke:#4a525c}
.vmspace-map .ram{fill:#0f3a5c;stroke:#56b4e9}
.vmspace-map .device{fill:#4d3800;stroke:#e69f00}
.vmspace-map .dax{fill:#06402f;stroke:#2fc296}
.vmspace-map .firmware{fill:#4c2440;stroke:#dd8fba}
.vmspace-map .other{fill:#262c36;stroke:#9ea7b3}
.vmspace-map .track{fill:#262c36}
.vmspace-map .resident{fill:#a98ef0}
.vmspace-map .dirty{fill:#ff8c42}
}
</style>
<defs><pattern id="vmspace-hatch" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><path d="M0 0V7" class="hatch"/></pattern></defs>
)svg";

/// Of the host nodes, which have a number beside them: 0, 8, 16 have the first.
inline constexpr std::array<std::string_view, 8> map_node_colours = {
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a800", "#7f7f7f"};

}  // namespace vmspace::detail
