/// What a model remembers of the folder it came from, to go back to one.
public struct ModelOrigin {
  let family: Family
  let shapes: TensorRows.Shapes
  /// Of which the folder had most.
  let type: ElementType
  /// Of its config.json.
  let text: UnsafeMutablePointer<UInt8>
  let count: Int
  /// Weights w of norms whose parameters are 1 + w, one norm after the other: the sum may have been rounded, and then no difference
  /// gives w again.
  let norms: UnsafeMutablePointer<Float>
  /// The files with the panels that the model multiplies by, which are mapped; nil where it has its own.
  var panels: CheckpointPointer?

  /// `norms`: how many numbers these are.
  init(_ source: PretrainedSource, _ shapes: TensorRows.Shapes, _ type: ElementType, norms numbers: Int) throws(Fault) {
    (family, self.shapes, self.type, count) = (source.family, shapes, type, source.config.count)
    let allocator = source.context.pointee.allocator
    text = try allocator.allocate(UInt8.self, count: count)
    do throws(Fault) {
      norms = try allocator.allocate(Float.self, count: numbers)
    } catch {
      allocator.deallocate(text)
      throw error
    }
    text.update(from: source.config.text, count: count)
  }

  func free(_ allocator: Allocator) {
    allocator.deallocate(norms)
    allocator.deallocate(text)
    panels?.free()
  }
}
