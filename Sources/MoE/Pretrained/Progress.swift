/// Tells a caller how far a long call is, and asks whether it shall stop.
public struct Progress {
  public typealias Callback = @convention(c) (UnsafeMutableRawPointer?, Int, Int) -> Int32

  private let callback: Callback?
  private let user: UnsafeMutableRawPointer?
  private var done = 0
  /// Bytes that will be read or written.
  var total = 0

  public init(_ callback: Callback?, _ user: UnsafeMutableRawPointer?) { (self.callback, self.user) = (callback, user) }

  /// Before the first and after each tensor.
  mutating func add(_ bytes: Int, in context: ContextPointer) throws(Fault) {
    done += bytes
    if let callback, callback(user, done, total) != 0 {
      throw Fault(.cancelled, "cancelled by the progress callback, after \(done) of \(total) bytes")
    }
    try context.askWhetherToStop()
  }
}
