import CMoE
import Foundation

/// An allocator for moe_context_config that keeps accounts, guards the borders of what it gives, and fails on demand.
/// It must outlive every handle made with it.
final class CountingAllocator: @unchecked Sendable {
  private static let border = 64
  private static let guardByte: UInt8 = 0xA5
  private static let freshByte: UInt8 = 0xFF  // four of them are a NaN: unwritten memory shows in every result

  private let lock = NSLock()
  private var sizes: [UnsafeMutableRawPointer: Int] = [:]
  private var untilFailure = Int.max
  private var failsOnce = false
  private var violations: [String] = []

  /// Allocations, and their bytes, that have not been given back.
  var live: Int { lock.withLock { sizes.count } }
  var liveBytes: Int { lock.withLock { sizes.values.reduce(0, +) } }

  /// Whether the failure asked for has happened.
  var hasFailed: Bool { lock.withLock { untilFailure <= 0 } }

  /// What the library did that an allocator does not survive.  Empty, one hopes.
  var complaints: [String] { lock.withLock { violations } }

  /// The `k`th allocation from now on fails, and unless it is to be `once`, those behind it too; nil = none does.
  func fail(at k: Int?, once: Bool = false) {
    lock.withLock {
      untilFailure = k ?? .max
      failsOnce = once
    }
  }

  var contextConfig: moe_context_config {
    var config = defaultContextConfig()
    config.alloc_user = Unmanaged.passUnretained(self).toOpaque()
    config.alloc = { user, size, alignment in
      Unmanaged<CountingAllocator>.fromOpaque(user!).takeUnretainedValue().allocate(size, alignment)
    }
    config.dealloc = { user, memory in
      Unmanaged<CountingAllocator>.fromOpaque(user!).takeUnretainedValue().deallocate(memory)
    }
    return config
  }

  private func allocate(_ size: Int, _ alignment: Int) -> UnsafeMutableRawPointer? {
    lock.withLock {
      if !(1...64 ~= alignment && alignment & (alignment - 1) == 0) { violations.append("alignment \(alignment)") }
      if size <= 0 { violations.append("size \(size)") }
      if untilFailure != .max { untilFailure -= 1 }
      if failsOnce ? untilFailure == 0 : untilFailure <= 0 { return nil }

      let whole = UnsafeMutableRawPointer.allocate(byteCount: size + 2 * Self.border, alignment: Self.border)
      whole.initializeMemory(as: UInt8.self, repeating: Self.guardByte, count: size + 2 * Self.border)
      let memory = whole + Self.border
      memory.initializeMemory(as: UInt8.self, repeating: Self.freshByte, count: size)
      sizes[memory] = size
      return memory
    }
  }

  private func deallocate(_ memory: UnsafeMutableRawPointer?) {
    lock.withLock {
      guard let memory, let size = sizes.removeValue(forKey: memory) else {
        violations.append("freed what was not allocated")
        return
      }
      let whole = memory - Self.border
      let bytes = UnsafeRawBufferPointer(start: whole, count: size + 2 * Self.border)
      if !(bytes.prefix(Self.border) + bytes.suffix(Self.border)).allSatisfy({ $0 == Self.guardByte }) {
        violations.append("wrote outside an allocation of \(size) bytes")
      }
      memory.initializeMemory(as: UInt8.self, repeating: Self.freshByte, count: size)  // use after free shows as well
      whole.deallocate()
    }
  }
}
