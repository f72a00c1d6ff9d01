import CShims

/// The matrices of a group of experts in a checkpoint's files, to be read expert by expert. They are read with pread, not
/// through the mapping: an error of the disk, or a file that was cut short, is then a status and not a fault of the process,
/// and no page of the file counts as the process's own.
struct StoredExperts {
  /// One tensor, or one for each expert, which holds the matrices of one or two parameters.
  fileprivate struct Tensor {
    let matrices: FusedMatrices
    let first: Parameters.Role
    let second: Parameters.Role?
  }

  fileprivate struct Place {
    let form: Form
    let file: Int32  // number among the checkpoint's
    let offset: Int
    // Of MXFP4.
    let scalesFile: Int32
    let scalesOffset: Int
  }

  fileprivate enum Form: Int32 {
    case f32, bf16, f16, mxfp4

    /// Of so many elements, in bytes, scales not among them.
    func bytes(_ count: Int) -> Int {
      switch self {
      case .f32: 4 * count
      case .bf16, .f16: 2 * count
      case .mxfp4: count / 2
      }
    }
    func scalesBytes(_ count: Int) -> Int { self == .mxfp4 ? count / MXFP4.block : 0 }
  }

  let group: ExpertGroup
  let kernels: UnsafePointer<moei_kernels>
  private let files: UnsafeMutablePointer<Int32>  // [fileCount] descriptors of our own; -1 = nothing of theirs is there
  private let fileCount: Int
  private let tensors: UnsafeMutablePointer<Tensor?>  // [mostTensors]
  private let places: UnsafeMutablePointer<Place>  // [mostTensors, experts]

  private static var mostTensors: Int { 3 }  // gate, up, down

  init(_ arena: inout Arena, _ group: ExpertGroup, _ kernels: UnsafePointer<moei_kernels>, files count: Int) {
    self.group = group
    self.kernels = kernels
    fileCount = count
    files = arena.take(Int32.self, count)
    tensors = arena.take(Tensor?.self, Self.mostTensors)
    places = arena.take(Place.self, Self.mostTensors, group.experts)
  }

  /// Notes where everything is. `loading` has been checked. After an error nothing is open.
  func open(_ loading: Loading, _ parameters: Parameters) throws(Fault) {
    files.initialize(repeating: -1, count: fileCount)
    tensors.initialize(repeating: nil, count: Self.mostTensors)
    do throws(Fault) {
      var count = 0
      try loading.tensors.entries { (entry) throws(Fault) in
        guard entry.matrices.first.isUnallocated else { return }
        try add(count, entry, loading, parameters)
        count += 1
      }
    } catch {
      close()
      throw error
    }
  }

  func close() {
    for file in 0..<fileCount where files[file] >= 0 { moei_file_close(files[file]) }
  }

  private func add(
    _ number: Int, _ entry: LayerTensors.Entry, _ loading: Loading, _ parameters: Parameters
  ) throws(Fault) {
    let matrices = FusedMatrices(entry.rule, entry.matrices.first, entry.matrices.second, byExpert: true)
    tensors[number] = Tensor(
      matrices: matrices, first: parameters.role(of: matrices.first),
      second: matrices.second.map { parameters.role(of: $0) })
    // A parameter as it is holds all its experts in one tensor, however many there are.
    var isNumbered = entry.isNumbered
    if entry.rule.listing == .plain { isNumbered = false }
    for expert in 0..<group.experts {
      let stored = try loading.values(entry, isNumbered ? expert : 0)
      let start = isNumbered ? 0 : expert * matrices.elements
      var (form, scales): (Form, UnsafeRawPointer?)
      switch stored.form {
      case .f32: (form, scales) = (.f32, nil)
      case .bf16: (form, scales) = (.bf16, nil)
      case .f16: (form, scales) = (.f16, nil)
      case .mxfp4(let bytes): (form, scales) = (.mxfp4, UnsafeRawPointer(bytes))
      }
      let (file, offset) = try place(stored.data, loading.checkpoint)
      let (scalesFile, scalesOffset) =
        try scales.map { (data) throws(Fault) in
          try place(data, loading.checkpoint)
        } ?? (file, 0)
      (places + number * group.experts + expert).initialize(
        to: Place(
          form: form, file: file, offset: offset + form.bytes(start), scalesFile: scalesFile,
          scalesOffset: scalesOffset + form.scalesBytes(start)))
    }
  }

  /// The file, opened for ourselves, and where the data are in it.
  private func place(_ data: UnsafeRawPointer, _ checkpoint: Checkpoint) throws(Fault) -> (Int32, Int) {
    let (file, offset) = checkpoint.place(of: data)
    if files[file] < 0 {
      var copy: Int32 = -1
      let error = moei_file_duplicate(checkpoint.descriptor(file), &copy)
      if error != 0 { throw .io("opening a file", checkpoint.descriptor(file), error) }
      files[file] = copy
    }
    return (Int32(truncatingIfNeeded: file), offset)
  }

  // MARK: reading

  private func forEach(_ expert: Int, _ body: (Tensor, Place) -> Void) {
    for number in 0..<Self.mostTensors {
      if let tensor = tensors[number] { body(tensor, places[number * group.experts + expert]) }
    }
  }

  /// Of one expert in the files.
  func bytes(_ expert: Int) -> Int {
    var sum = 0
    forEach(expert) { tensor, place in
      let count = tensor.matrices.elements
      sum += place.form.bytes(count) + place.form.scalesBytes(count)
    }
    return sum
  }

  /// What reading takes beside the matrices themselves: room for a tensor that is not as they are.
  var rawBytes: Int {
    var most = 0
    for expert in 0..<group.experts {
      forEach(expert) { tensor, place in
        if isDirect(tensor, place) { return }
        let count = tensor.matrices.elements
        most = max(most, place.form.bytes(count) + place.form.scalesBytes(count))
      }
    }
    return most
  }

  /// Whether what is stored is the matrix as it will be read.
  private func isDirect(_ tensor: Tensor, _ place: Place) -> Bool {
    let isSameType = place.form == (group.weights == .f32 ? .f32 : .bf16)
    return isSameType && tensor.matrices.parts == 1 && !tensor.matrices.transposed
  }

  /// Reads an expert's matrices to number `place` of `rows`. `raw`: [rawBytes]. Returns 0, or an error as moei_file_read does
  /// and the descriptor of the file.
  func read(
    _ expert: Int, to rows: ExpertMatrices, at place: Int, raw: UnsafeMutableRawPointer
  ) -> (error: Int32, file: Int32) {
    var failure: (error: Int32, file: Int32) = (0, 0)
    forEach(expert) { tensor, stored in
      guard failure.error == 0 else { return }
      func get(_ file: Int32, _ offset: Int, _ bytes: Int, _ memory: UnsafeMutableRawPointer) -> Bool {
        let error = moei_file_read(files[Int(file)], memory, Int64(bytes), Int64(offset))
        if error != 0 { failure = (error, files[Int(file)]) }
        return error == 0
      }
      let (m, count) = (tensor.matrices, tensor.matrices.elements)
      let bytes = stored.form.bytes(count)
      let target = rows[tensor.first]! + place * group.matrixBytes
      if isDirect(tensor, stored) {
        _ = get(stored.file, stored.offset, bytes, target)
        return
      }
      guard get(stored.file, stored.offset, bytes, raw) else { return }
      let scales = raw + bytes
      let scalesBytes = stored.form.scalesBytes(count)
      if scalesBytes > 0 && !get(stored.scalesFile, stored.scalesOffset, scalesBytes, scales) { return }
      let values = StoredValues(form: stored.form.values(scales: scales), data: raw)
      m.copy(0, from: values, at: 0, to: ParameterValues(target, group.weights, kernels), at: 0)
      if let second = tensor.second {
        let target = rows[second]! + place * group.matrixBytes
        m.copy(1, from: values, at: 0, to: ParameterValues(target, group.weights, kernels), at: 0)
      }
    }
    return failure
  }
}

extension StoredExperts.Form {
  fileprivate func values(scales: UnsafeRawPointer) -> StoredValues.Form {
    switch self {
    case .f32: .f32
    case .bf16: .bf16
    case .f16: .f16
    case .mxfp4: .mxfp4(scales: scales.assumingMemoryBound(to: UInt8.self))
    }
  }
}

extension Fault {
  /// What the system said about an open file.
  static func io(_ action: StaticString, _ file: Int32, _ error: Int32) -> Fault {
    withUnsafeTemporaryAllocation(of: CChar.self, capacity: 512) { path in
      moei_file_name(file, path.baseAddress!, 512)
      let path = UnsafePointer(path.baseAddress!)
      if error == Int32(MOEI_FILE_ENDED) { return Fault(.io, "\(action): it has been cut short: \(path)") }
      return .io(action, path, error)
    }
  }
}
