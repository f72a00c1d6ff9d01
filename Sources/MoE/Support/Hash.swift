/// Tells calls, configurations and choices apart: FNV-1a [Fowler, Noll, Vo], by words in place of bytes.
public struct Hash {
  public private(set) var value: UInt64 = 0xcbf2_9ce4_8422_2325

  public init() {}

  public mutating func add(_ word: UInt64) { value = (value ^ word) &* 0x100_0000_01b3 }
  public mutating func add(_ bytes: UnsafeRawBufferPointer) { for byte in bytes { add(UInt64(byte)) } }
  /// Of long memory, eight bytes at a time.
  mutating func addWords(_ memory: UnsafeRawPointer, bytes: Int) {
    let whole = bytes & ~7
    for place in stride(from: 0, to: whole, by: 8) { add(memory.loadUnaligned(fromByteOffset: place, as: UInt64.self)) }
    add(UnsafeRawBufferPointer(start: memory + whole, count: bytes - whole))
  }
}
