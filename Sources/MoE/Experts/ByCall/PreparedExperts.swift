import CShims

/// Experts' weights packed once, for calls to come: by any threads, since nobody writes to it any more.
public struct PreparedExperts {
  fileprivate let context: ContextPointer
  public let group: ExpertGroup
  public let form: PanelForm
  public let bytes: Int

  /// What is computed in place of such experts: of blocks, float32 experts with the blocks' values.
  public func computed(_ group: ExpertGroup) -> ExpertGroup { form.isFrozen ? group.storing(.f32) : group }
}

public typealias PreparedExpertsPointer = UnsafeMutablePointer<PreparedExperts>

extension UnsafeMutablePointer where Pointee == PreparedExperts {
  /// The matrices of `call`, as panels of that form.
  public static func create(
    _ call: ExpertsCall, form: PanelForm, in context: ContextPointer
  ) throws(Fault) -> PreparedExpertsPointer {
    if !form.isRead(in: context) {
      throw .badState(
        "the products of this context are not libmoe's own (MOE_MATMUL_NATIVE) and read no packed weights")
    }
    var made: PreparedExpertsPointer?
    try call.withConfiguration { (c) throws(Fault) in
      try c.require(LayerForms(form))
      let bytes = try Arena.bytes { PreparedLayout(&$0, c, form).groups }
      var arena = Arena(try context.pointee.allocator.allocate(bytes: bytes))
      let layout = PreparedLayout(&arena, c, form)
      layout.handle.initialize(
        to: PreparedExperts(context: context, group: call.group, form: form, bytes: bytes))
      context.retain()
      var tensors = CallTensors(call)
      do throws(Fault) {
        try withUnsafeMutablePointer(to: &tensors) { (tensors) throws(Fault) in
          try layout.groups.pack(.call(UnsafePointer(tensors)), in: context)
        }
      } catch {
        layout.handle.free()
        throw error
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
    return PreparedLayout(&arena, c, pointee.form).groups
  }
}

/// One block of memory.
private struct PreparedLayout {
  let handle: PreparedExpertsPointer
  let groups: PreparedGroups

  init(_ arena: inout Arena, _ c: Configuration, _ form: PanelForm) {
    handle = arena.take(PreparedExperts.self, 1)
    groups = PreparedGroups(&arena, c, forms: LayerForms(form))
  }
}
