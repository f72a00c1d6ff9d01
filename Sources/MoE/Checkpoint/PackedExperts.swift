import CShims

/// Bytes in a file that is open.
struct FilePlace {
  let input: InputFile
  let offset: Int
  let bytes: Int
}

/// Where an offloaded group's matrices come from.
enum ExpertFiles {
  case stored(StoredExperts)
  case packed(PackedExperts)

  var group: ExpertGroup {
    switch self {
    case .stored(let stored): stored.group
    case .packed(let packed): packed.group
    }
  }

  /// What reading takes beside the matrices themselves, which become panels at once where there are `sources`.
  func rawBytes(_ sources: GroupSources?) -> Int {
    switch self {
    case .stored(let stored): stored.rawBytes(sources)
    case .packed: 0
    }
  }

  /// Of one expert in the files.
  func bytes(_ expert: Int) -> Int {
    switch self {
    case .stored(let stored): stored.bytes(expert)
    case .packed(let packed): packed.bytes
    }
  }

  func close(_ allocator: Allocator) {
    switch self {
    case .stored(let stored): stored.close(allocator)
    case .packed(let packed): packed.close()
    }
  }
}

/// The matrices of a group of experts as panels in files, to be read expert by expert to where they are multiplied. With pread, as
/// StoredExperts does.
struct PackedExperts {
  /// One tensor, which has a matrix of all experts.
  private struct Tensor {
    let matrix: PreparedWeights.Matrix
    let input: InputFile  // opened for ourselves
    let offset: Int
    let bytes: Int  // of one expert
  }

  let group: ExpertGroup
  private let tensors: UnsafeMutablePointer<Tensor?>  // [mostTensors]

  private static var mostTensors: Int { 3 }  // gate, up, down

  init(_ arena: inout Arena, _ group: ExpertGroup) {
    self.group = group
    tensors = arena.take(Tensor?.self, Self.mostTensors)
  }

  /// Notes where everything is. `place`: of a matrix of all experts. After an error nothing is open.
  func open(_ place: (PreparedWeights.Matrix) -> FilePlace?) throws(Fault) {
    tensors.initialize(repeating: nil, count: Self.mostTensors)
    for number in 0..<Self.mostTensors {
      let matrix = PreparedWeights.Matrix(rawValue: Int32(number))!
      guard let found = place(matrix) else { continue }
      do throws(Fault) {
        tensors[number] = Tensor(
          matrix: matrix, input: try found.input.duplicate(), offset: found.offset, bytes: found.bytes / group.experts)
      } catch {
        close()
        throw error
      }
    }
  }

  func close() {
    for number in 0..<Self.mostTensors { tensors[number]?.input.close() }
  }

  /// Of one expert in the files.
  var bytes: Int {
    var sum = 0
    for number in 0..<Self.mostTensors { sum += tensors[number]?.bytes ?? 0 }
    return sum
  }

  /// Reads an expert's panels to number `place` of `slots`. Returns 0, or an error and the descriptor of the file.
  func read(_ expert: Int, to slots: PreparedWeights, at place: Int) -> Offload.Failure {
    for number in 0..<Self.mostTensors {
      guard let tensor = tensors[number] else { continue }
      let error = tensor.input.read(
        tensor.offset + expert * tensor.bytes, tensor.bytes, to: slots.panel(tensor.matrix, group, place, 0))
      if error != 0 { return (error, tensor.input.descriptor) }
    }
    return (0, 0)
  }
}
