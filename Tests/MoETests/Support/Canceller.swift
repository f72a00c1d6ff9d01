import CMoE
import Testing

/// A host that wants to stop at some question of the cancel callback. It has to live as long as the context it is in.
final class Canceller {
  var left = Int.max  // answers of "go on"
  private(set) var asked = 0

  /// Puts itself into a context's configuration.
  func join(_ config: inout moe_context_config) {
    config.cancel_user = Unmanaged.passUnretained(self).toOpaque()
    config.cancel = { user in
      let canceller = Unmanaged<Canceller>.fromOpaque(user!).takeUnretainedValue()
      canceller.asked += 1
      canceller.left -= 1
      return canceller.left < 0 ? 1 : 0
    }
  }

  /// Calls `run` cancelled at its first question, at its second, and so on, until there are no more; `values` must stay as they
  /// were until then. Returns at how many questions it was.
  func cancelAtEach(_ run: () -> moe_status, leaving values: () throws -> [UInt32]) throws -> Int {
    let before = try values()
    var cancelled = 0
    while true {
      (left, asked) = (cancelled, 0)
      let status = run()
      if status == MOE_OK { break }
      try #require(status == MOE_ERROR_CANCELLED)
      #expect(try values() == before)
      cancelled += 1
    }
    // How often is a matter of time; a question whose answer counted for nothing would have been one more.
    #expect(asked <= cancelled, "once the values change nobody is asked")
    return cancelled
  }
}
