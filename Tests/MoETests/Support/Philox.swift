/// Philox4x32-10 as its authors write it down (Salmon et al., SC'11), one counter at a time.
func philox(counter: [UInt32], key: [UInt32]) -> [UInt32] {
  var (c, k) = (counter, key)
  for _ in 0..<10 {
    let a = UInt64(0xD251_1F53) * UInt64(c[0])
    let b = UInt64(0xCD9E_8D57) * UInt64(c[2])
    c = [
      UInt32(b >> 32) ^ c[1] ^ k[0], UInt32(truncatingIfNeeded: b),
      UInt32(a >> 32) ^ c[3] ^ k[1], UInt32(truncatingIfNeeded: a),
    ]
    k = [k[0] &+ 0x9E37_79B9, k[1] &+ 0xBB67_AE85]
  }
  return c
}

/// Word `index` of the library's numbers, which lie as docs/design.md says: four to a counter.
func randomWord(_ index: Int, seed: UInt64, stream: UInt32, step: UInt64 = 0) -> UInt32 {
  let number = UInt64(index / 4)
  let counter = [
    UInt32(truncatingIfNeeded: number), UInt32(number >> 32),
    UInt32(truncatingIfNeeded: step), UInt32(step >> 32) << 8 | stream,
  ]
  return philox(counter: counter, key: [UInt32(truncatingIfNeeded: seed), UInt32(seed >> 32)])[index % 4]
}
