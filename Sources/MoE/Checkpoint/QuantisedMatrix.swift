/// Weights [rows, columns] of a linear map that several tensors of a folder hold together: numbers of few bits, and what scales them.
struct QuantisedMatrix {
  /// How the numbers lie. The raw type is for the linker, see ExpertForm.
  enum Scheme: Int32 {
    /// compressed-tensors: words of 32 bits along the columns, the lowest bits first, as numbers from 0 on.
    case packed
    /// AWQ: transposed, words along the rows, which are in the order 0, 2, 4, 6, 1, 3, 5, 7.
    case awq
    /// GPTQ: transposed, words along the columns.
    case gptq
    /// A number in 8 bits each.
    case bytes
    /// Two numbers of 4 bits in a byte, the earlier one in the lower half.
    case fp4
  }

  /// One of the tensors.
  struct Part {
    let file: Int32
    let offset: Int
    let bytes: Int
    let type: StoredType

    init(_ tensor: StoredTensor) {
      (file, offset, bytes, type) = (tensor.file, tensor.offset, tensor.bytes, tensor.type)
    }

    /// So that the next one is aligned.
    var room: Int { (bytes + 15) & ~15 }
  }

  let scheme: Scheme
  let rows: Int
  let columns: Int
  /// Of a number.
  let bits: Int
  /// Rows and columns that share a scale, and how many scales there are along the columns.
  let blockRows: Int
  let blockColumns: Int
  let groups: Int
  let numbers: Part
  let scales: Part
  /// Zero points, as the numbers are written down.
  var zeros: Part?
  /// What a zero point is beside what is written: 1 in GPTQ's first version.
  var zeroShift = 0
  /// I32 [columns]: the group of a column.
  var order: Part?
  /// What scales are divided by, or multiplied by.
  var divisor: Float?
  var factor: Float?

  /// All parts in memory, one behind the other.
  var bytes: Int {
    var sum = 0
    forEachPart { sum += $0.room }
    return sum
  }

  func forEachPart<E: Error>(_ body: (Part) throws(E) -> Void) throws(E) {
    try body(numbers)
    try body(scales)
    if let zeros { try body(zeros) }
    if let order { try body(order) }
  }

  /// Elements first, first + stride, ... to `out`. `data`: [bytes]
  func read(
    _ data: UnsafeRawPointer, _ first: Int, stride: Int, count: Int, to out: UnsafeMutablePointer<Float>
  ) {
    let values = QuantisedValues(self, data)
    var done = 0
    while done < count {
      let (row, column) = (first + done * stride).quotientAndRemainder(dividingBy: columns)
      if stride != 1 {
        out[done] = values.value(row, column)
        done += 1
        continue
      }
      let run = min(columns - column, count - done)
      values.read(row, column, run, to: out + done)
      done += run
    }
  }
}
