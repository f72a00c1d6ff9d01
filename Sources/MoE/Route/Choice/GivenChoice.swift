/// The caller's indices: external routing, or a record that is replayed.
struct GivenChoice {
  let c: Configuration
  let routing: Routing
  let indices: UnsafePointer<Int32>?  // [T, choices], checked

  func choose(_ block: TokenBlock) -> RoutingFailure? {
    for t in block.tokens where routing.isRouted(t) {
      (routing.indices + t * routing.slots).update(from: indices! + t * c.choices, count: c.choices)
    }
    return nil
  }
}
