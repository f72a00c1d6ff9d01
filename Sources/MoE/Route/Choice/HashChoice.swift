import CShims

/// A table by token id [Hash layers, Roller et al. 2021].
struct HashChoice {
  let c: Configuration
  let routing: Routing
  let table: UnsafePointer<Int32>  // [V,K]
  let tokenIds: UnsafePointer<Int64>?  // [T], checked; nil where T = 0, or the call is only planned

  func choose(_ block: TokenBlock) -> RoutingFailure? {
    for t in block.tokens where routing.isValid(t) {
      if let kept = block.values {
        let z = block.logits + (t - block.tokens.lowerBound) * c.experts
        kept.of(t).update(from: z, count: c.experts)
      }
      (routing.indices + t * routing.slots).update(from: table + Int(tokenIds![t]) * c.topK, count: c.topK)
    }
    return nil
  }
}

/// A table by seed: for each token id K distinct experts.
func fillHashTable(_ table: UnsafeMutablePointer<Int32>, _ c: Configuration, _ kernels: UnsafePointer<moei_kernels>) {
  let random = Random(kernels: kernels, seed: c.seed, stream: Draws.Stream.hashTable.rawValue, step: 0)
  for id in 0..<c.vocabulary {
    let row = table + id * c.topK
    for k in 0..<c.topK {
      // One of the E - k that are left, found by passing over those that are taken.
      var wanted = Int(random.word(UInt64(id * c.topK + k)) % UInt32(c.experts - k))
      var expert: Int32 = 0
      while true {
        var taken = false
        for i in 0..<k where row[i] == expert { taken = true }
        if !taken {
          if wanted == 0 { break }
          wanted -= 1
        }
        expert += 1
      }
      row[k] = expert
    }
  }
}
