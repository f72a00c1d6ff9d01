/// What one call of a model brings. The boundary has checked sizes and values. As flat as the header's options of a call.
public struct ModelInput {
  public let sequences: Int  // B
  public let length: Int  // S
  public var ids: UnsafePointer<Int32>?  // [B,S] of a model with a vocabulary
  public var hidden: UnsafePointer<Float>?  // [B,S,H] of one without
  public var targets: UnsafePointer<Int32>?  // [B,S]
  public var ignoreIndex: Int32 = -100
  public var smoothing = 0.0
  public var training = false
  /// Whether backward follows, or this is it.
  var isTaped = false
  public var step: UInt64 = 0
  public var mask: UnsafePointer<UInt8>?  // [S,S]
  public var addedMask: UnsafePointer<Float>?  // [S,S]
  public var validMask: UnsafePointer<UInt8>?  // [B,S]
  /// Of the tokens in their sequences; nil: counted (Positions.swift).
  public var positions: UnsafePointer<Int64>?  // [B,S]
  /// Real tokens that a cache has of each sequence.
  var known: UnsafePointer<Int>?  // [B]
  /// Tokens of each sequence that it has room for.
  var capacity: Int?
  public var lossMask: UnsafePointer<UInt8>?  // [B,S] tokens that count in auxiliary losses
  /// Notes what matrices read.
  var calibration: CalibrationPointer?
  /// Bytes of scratch and tape together; nil = as the context has it.
  public var limit: Int?
  /// Tokens that an ffn computes at once at most.
  public var chunkTokens: Int?

  public init(sequences: Int, length: Int) {
    self.sequences = sequences
    self.length = length
  }

  public var tokens: Int { sequences * length }  // T
}

/// What is learned from a call.
public struct ModelReport {
  public var loss = 0.0
  public var auxLoss = 0.0
  public var pooledBalanceLoss = 0.0
  public var objective = 0.0
  public var targets = 0
}

/// Where the arrays of one call go that the caller wants; nil where not.
public struct ModelOutputs {
  public var hidden: UnsafeMutablePointer<Float>?  // [B,S,H]
  public var logits: UnsafeMutablePointer<Float>?  // [B,S,V]
  public var tokenLosses: UnsafeMutablePointer<Float>?  // [B,S]

  public init() {}
}
