import CShims

/// Experts' weights packed once, for calls to come: by any threads, since nobody writes to it any more.
public struct PreparedExperts {
  fileprivate let context: ContextPointer
  public let group: ExpertGroup
  public let type: ElementType
  public let bytes: Int
}

public typealias PreparedExpertsPointer = UnsafeMutablePointer<PreparedExperts>

extension UnsafeMutablePointer where Pointee == PreparedExperts {
  /// The matrices of `call`, as panels of that type.
  public static func create(
    _ call: ExpertsCall, type: ElementType, in context: ContextPointer
  ) throws(Fault) -> PreparedExpertsPointer {
    if !context.packsWeights {
      throw .badState(
        "the products of this context are not libmoe's own (MOE_MATMUL_NATIVE) and read no packed weights")
    }
    var made: PreparedExpertsPointer?
    try call.withConfiguration { (c) throws(Fault) in
      let bytes = try Arena.bytes { PreparedLayout(&$0, c, type).groups }
      var arena = Arena(try context.pointee.allocator.allocate(bytes: bytes))
      let layout = PreparedLayout(&arena, c, type)
      layout.handle.initialize(
        to: PreparedExperts(context: context, group: call.group, type: type, bytes: bytes))
      context.retain()
      var tensors = CallTensors(call)
      withUnsafeMutablePointer(to: &tensors) {
        layout.groups.pack(.call(UnsafePointer($0)), in: context)
      }
      made = layout.handle
    }
    return made!
  }

  public func free() {
    let context = pointee.context
    context.pointee.allocator.deallocate(self)
    context.release()
  }

  /// The panels, for a call's configuration: found by laying them out again.
  func groups(_ c: Configuration) -> PreparedGroups {
    var arena = Arena(UnsafeMutableRawPointer(self))
    return PreparedLayout(&arena, c, pointee.type).groups
  }
}

/// One block of memory.
private struct PreparedLayout {
  let handle: PreparedExpertsPointer
  let groups: PreparedGroups

  init(_ arena: inout Arena, _ c: Configuration, _ type: ElementType) {
    handle = arena.take(PreparedExperts.self, 1)
    groups = PreparedGroups(&arena, c, type: type)
  }
}
