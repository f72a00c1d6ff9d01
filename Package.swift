// swift-tools-version: 6.2
import PackageDescription

// Two builds of the same sources:
//   swift build, swift test   ordinary Swift, for work on the code and for Swift programs;
//   make lib                  MOE_EMBEDDED=1: Embedded Swift, the libmoe.so that is shipped (scripts/lib).
// MOE_LIBRARY=dir makes the tests use the libmoe.so found there, as a C program would, instead of the sources.
let embedded = Context.environment["MOE_EMBEDDED"] != nil
let library = Context.environment["MOE_LIBRARY"]

let engine: [SwiftSetting] =
  [.unsafeFlags(["-enforce-exclusivity=unchecked"])]
  + (embedded ? [.enableExperimentalFeature("Embedded"), .unsafeFlags(["-wmo"])] : [])

// Thread-local text through TLS descriptors: no slot of the host's static TLS is taken, and ld.so is not needed by name.
#if arch(x86_64)
  let tls = ["-mtls-dialect=gnu2"]
#else
  let tls: [String] = []
#endif

/// Kernels need no Swift runtime (scripts/check-library proves it), so that no runtime function compiled for wide
/// instructions can end up serving a processor without them. They are optimised in debug builds too.
func kernels(_ name: String, defining defines: [String], _ options: [String]) -> Target {
  .target(
    name: name, dependencies: ["CShims"],
    swiftSettings: defines.map { .define($0) } + [
      .unsafeFlags(
        ["-Ounchecked", "-enforce-exclusivity=unchecked"]
          + ["-disable-all-autolinking", "-disable-reflection-metadata"].flatMap { ["-Xfrontend", $0] }
          + options.flatMap { ["-Xcc", $0] })
    ])
}

#if arch(x86_64)
  let kernelTargets = [
    kernels("Kernels", defining: [], []),
    kernels("KernelsAVX2", defining: ["MOE_FMA", "MOE_AVX2"], ["-march=x86-64-v3"]),
    kernels("KernelsAVX512", defining: ["MOE_FMA", "MOE_AVX512"], ["-march=x86-64-v4"]),
    kernels(
      "KernelsAVX512BF16", defining: ["MOE_FMA", "MOE_AVX512", "MOE_AVX512BF16"],
      ["-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni"]),
  ]
#else
  // arm64's base set has FMA. Compiled for it, and run in an emulator: scripts/check-arm64.
  let kernelTargets = [kernels("Kernels", defining: ["MOE_FMA"], [])]
#endif

// An sdist has the shipped build alone, and no tests.
let tests: [Target] =
  embedded
  ? []
  : [
    .testTarget(
      name: "MoETests",
      dependencies: library == nil ? ["CMoE", "MoEABI"] : ["CMoE"],
      linkerSettings: library.map {
        [.unsafeFlags(["-L\($0)", "-lmoe", "-Xlinker", "-rpath", "-Xlinker", $0])]
      } ?? [])
  ]

let package = Package(
  name: "libmoe",
  // With MOE_LIBRARY there must be no second libmoe.so that the linker could find first.
  products: library == nil ? [.library(name: "moe", type: .dynamic, targets: ["MoEABI"])] : [],
  targets: [
    // The public header, and C where Swift has no spelling.
    .target(name: "CMoE"),
    .target(name: "CShims", cSettings: [.unsafeFlags(["-O2", "-fvisibility=hidden"] + tls)]),
    // Tables, apart from what the kernels see: neither a new layout nor an edit of the header compiles them again.
    .target(name: "CLayouts", cSettings: [.unsafeFlags(["-O2", "-fvisibility=hidden"])]),
  ] + kernelTargets + [
    // The engine, and the boundary around it.
    .target(
      name: "MoE",
      dependencies: ["CShims", "CLayouts"] + kernelTargets.map { .target(name: $0.name) },
      swiftSettings: engine, linkerSettings: [.linkedLibrary("m")]),
    .target(name: "MoEABI", dependencies: ["CMoE", "CShims", "CLayouts", "MoE"], swiftSettings: engine),
  ] + tests)
