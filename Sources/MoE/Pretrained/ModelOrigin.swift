/// What a model remembers of the folder it came from, to go back to one.
public struct ModelOrigin {
  let family: Family
  let shapes: TensorRows.Shapes
  /// Of which the folder had most.
  let type: ElementType
  /// Of its config.json.
  let text: UnsafeMutablePointer<UInt8>
  let count: Int

  init(_ source: PretrainedSource, _ shapes: TensorRows.Shapes, _ type: ElementType) throws(Fault) {
    (family, self.shapes, self.type, count) = (source.family, shapes, type, source.config.count)
    text = try source.context.pointee.allocator.allocate(UInt8.self, count: count)
    text.update(from: source.config.text, count: count)
  }

  func free(_ allocator: Allocator) { allocator.deallocate(text) }
}
