import CShims

// The matrix products that sum over tokens: dW = dY^T X. As in Tile.swift a few rows of outputs stay in registers, each output is
// one chain in ascending order, and a product has more than ten parameters: matrices, where they begin and how far apart their rows
// are, as in BLAS.

/// Places of 128 bytes that are wanted after a product. They are fetched one by one, token after token: all at once would keep the
/// product's own loads waiting.
struct Wanted {
  private var next: UnsafePointer<UnsafeRawPointer>?
  private var left: Int

  @inline(__always) init(_ first: UnsafePointer<UnsafeRawPointer>?, _ count: Int64) {
    (next, left) = (first, Int(count))
  }

  @inline(__always) mutating func fetchOne() {
    if left == 0 { return }
    let place = next.unsafelyUnwrapped.pointee
    moei_prefetch(place)
    moei_prefetch(place + 64)
    next = next.unsafelyUnwrapped + 1
    left &-= 1
  }

  @inline(__always) mutating func fetchAll() { while left > 0 { fetchOne() } }
}

/// C[R.count, Lanes.width] += the sum over tokens t, or pairs of them, of A[t, first...]^T B[t, :].
/// A and B: [tile][chunk][t][32].
@inline(__always) private func tileOverTokens<R: Rows, F: Factors>(
  _: R.Type, _: F.Type, _ tiles: moei_tiles, _ a: UnsafePointer<F.Word>, _ first: Int, _ aWidth: Int, _ aChunk: Int,
  _ b: UnsafePointer<F.Word>, _ bWidth: Int, _ bChunk: Int, _ c: Target, _ cStride: Int, _ cNext: Source
) {
  var memory = moei_decoded_memory()
  withUnsafeMutablePointer(to: &memory) { memory in
    var rows = R(c, cStride)
    // Gradients are far away: fetched now, the next rows are here when their turn comes.
    var next = 0
    while next < R.count {
      moei_prefetch_to_write(cNext + next &* cStride)
      moei_prefetch_to_write(cNext + (next &* cStride &+ 16))
      next &+= 1
    }
    var (aTile, bTile, index) = (a, b, 0)
    while index < Int(tiles.count) {
      let height = Int(tiles.height) &- (index < Int(tiles.tall) ? 0 : 1)
      let a = aTile + aChunk &* height &* 32
      let b = bTile + bChunk &* height &* 32
      var t = 0
      while t < height {
        let count = height &- t < 16 ? height &- t : 16
        let (a, b) = (a + t &* 32, b + t &* 32)
        F.beginTokens(first, a, count, b, memory)
        var p = 0
        while p < count {
          F.addTokens(&rows, p, first, a, b, memory)
          p &+= 1
        }
        t &+= count
      }
      aTile += height &* aWidth
      bTile += height &* bWidth
      index &+= 1
    }
    rows.write(c, cStride)
  }
}

#if MOE_AVX512
  /// The same with 64 columns: two chunks of B. Rows of C that lie a multiple of 4 KiB apart share a few places of the first-level
  /// cache; six of them still find room there, and stores then do not hold up the loads behind them, as those of eleven do.
  @inline(__always) private func wideTileOverTokens<R: Rows, F: Factors>(
    _: R.Type, _: F.Type, _ tiles: moei_tiles, _ a: UnsafePointer<F.Word>, _ first: Int, _ aWidth: Int, _ aChunk: Int,
    _ b: UnsafePointer<F.Word>, _ bWidth: Int, _ bChunk: Int, _ c: Target, _ cStride: Int, _ cNext: Source, _ line: Int,
    _ wanted: inout Wanted
  ) {
    var left = R(c, cStride)
    var right = R(c + 32, cStride)
    var next = 0
    while next < R.count {
      let row = cNext + next &* cStride
      moei_prefetch_to_write(row)
      moei_prefetch_to_write(row + 16)
      moei_prefetch_to_write(row + 32)
      moei_prefetch_to_write(row + 48)
      next &+= 1
    }
    var (aTile, bTile, index) = (a, b, 0)
    while index < Int(tiles.count) {
      let height = Int(tiles.height) &- (index < Int(tiles.tall) ? 0 : 1)
      let chunk = height &* 32
      var (a, b) = (aTile + (aChunk &* chunk &+ first), bTile + bChunk &* chunk)
      // The chunks behind these come next: of their six lines for each token every pass over the tokens fetches one.
      var ahead = aTile + (aChunk &+ 1) &* chunk
      if line >= 4 { ahead = b + 3 &* chunk } else if line >= 2 { ahead = b + 2 &* chunk }
      if line % 2 == 1 { ahead += 16 }
      var t = 0
      while t < height {
        moei_prefetch(ahead)
        wanted.fetchOne()
        F.accumulate(&left, a, 1, b)
        F.accumulate(&right, a, 1, b + chunk)
        ahead += 32
        a += 32
        b += 32
        t &+= 1
      }
      aTile += height &* aWidth
      bTile += height &* bWidth
      index &+= 1
    }
    left.write(c, cStride)
    right.write(c + 32, cStride)
  }

  /// C[rows, 64] += A^T B for one chunk of A and two of B.
  @inline(__always) private func wideProductOver<F: Factors>(
    _: F.Type, _ rows: Int, _ tiles: moei_tiles, _ a: UnsafePointer<F.Word>, _ aWidth: Int, _ aChunk: Int,
    _ b: UnsafePointer<F.Word>, _ bWidth: Int, _ bChunk: Int, _ c: Target, _ cStride: Int, _ cNext: Source,
    _ wanted: Wanted
  ) {
    var wanted = wanted
    var passes = (rows &+ 5) / 6  // 32 rows are 6, 6, 5, 5, 5 and 5
    var r = 0
    var line = 0
    while passes > 0 {
      let count = (rows &- r &+ passes &- 1) / passes
      let c = c + r &* cStride
      let next = passes > 1 ? Source(c) + count &* cStride : cNext
      switch count {
      case 1:
        wideTileOverTokens(
          One.self, F.self, tiles, a, r, aWidth, aChunk, b, bWidth, bChunk, c, cStride, next, line, &wanted)
      case 2:
        wideTileOverTokens(
          Two.self, F.self, tiles, a, r, aWidth, aChunk, b, bWidth, bChunk, c, cStride, next, line, &wanted)
      case 3:
        wideTileOverTokens(
          Three.self, F.self, tiles, a, r, aWidth, aChunk, b, bWidth, bChunk, c, cStride, next, line, &wanted)
      case 4:
        wideTileOverTokens(
          Four.self, F.self, tiles, a, r, aWidth, aChunk, b, bWidth, bChunk, c, cStride, next, line, &wanted)
      case 5:
        wideTileOverTokens(
          Five.self, F.self, tiles, a, r, aWidth, aChunk, b, bWidth, bChunk, c, cStride, next, line, &wanted)
      default:
        wideTileOverTokens(
          Six.self, F.self, tiles, a, r, aWidth, aChunk, b, bWidth, bChunk, c, cStride, next, line, &wanted)
      }
      r &+= count
      line &+= 1
      passes &-= 1
    }
    wanted.fetchAll()  // what few tokens have left
  }
#endif

/// Rows of C at once, at most eleven: 32 are then 11, 11 and 10; or 6, 6, 5, 5, 5 and 5, since few rows keep too few chains going.
private var rowsAtOnce: Int { tallestTile < 11 ? tallestTile : 11 }

/// Tiles that all rows of C pass over before the next ones come. Few registers make many passes, for which the chunks of A and half of
/// those of B of about 128 tokens stay in the first-level cache.
@inline(__always) private func tilesAtOnce(_ tiles: moei_tiles) -> Int {
  #if MOE_AVX512
    Int(tiles.count)
  #else
    tiles.height < 2 ? 128 : tiles.height < 128 ? 128 / Int(tiles.height) : 1
  #endif
}

/// C[rows, columns] += A^T B for one chunk of up to 32 features of A and one of B.
@inline(__always) private func narrowProductOver<F: Factors>(
  _: F.Type, _ rows: Int, _ columns: Int, _ tiles: moei_tiles, _ a: UnsafePointer<F.Word>, _ aWidth: Int,
  _ aChunk: Int, _ b: UnsafePointer<F.Word>, _ bWidth: Int, _ bChunk: Int, _ c: Target, _ cStride: Int, _ cNext: Source
) {
  withColumns(columns, rows, Source(c), cStride, c, cStride) { _, _, c, cs in
    let most = tilesAtOnce(tiles)
    var (a, b, first) = (a, b, 0)
    while first < Int(tiles.count) {
      let left = Int(tiles.count) &- first
      let count = left < most ? left : most
      let tall = Int(tiles.tall) &- first
      let own = tall < 0 ? 0 : tall < count ? tall : count
      let part = moei_tiles(count: Int32(count), tall: Int32(own), height: tiles.height)
      passesOverTokens(F.self, rows, part, a, aWidth, aChunk, b, bWidth, bChunk, c, cs, cNext)
      let tokens = count &* (Int(tiles.height) &- 1) &+ own
      a += tokens &* aWidth
      b += tokens &* bWidth
      first &+= count
    }
  }
}

/// C[rows, 32] += A^T B over some tiles, a few rows of C in each pass.
@inline(__always) private func passesOverTokens<F: Factors>(
  _: F.Type, _ rows: Int, _ tiles: moei_tiles, _ a: UnsafePointer<F.Word>, _ aWidth: Int, _ aChunk: Int,
  _ b: UnsafePointer<F.Word>, _ bWidth: Int, _ bChunk: Int, _ c: Target, _ cs: Int, _ cNext: Source
) {
  var column = 0
  while column < 32 {
    var (r, passes) = (0, (rows &+ rowsAtOnce &- 1) / rowsAtOnce)
    while passes > 0 {
      let count = (rows &- r &+ passes &- 1) / passes
      let (b, c) = (b + column, c + (r &* cs &+ column))
      let next = passes > 1 ? Source(c) + count &* cs : cNext
      switch count {
      case 1: tileOverTokens(One.self, F.self, tiles, a, r, aWidth, aChunk, b, bWidth, bChunk, c, cs, next)
      case 2: tileOverTokens(Two.self, F.self, tiles, a, r, aWidth, aChunk, b, bWidth, bChunk, c, cs, next)
      case 3: tileOverTokens(Three.self, F.self, tiles, a, r, aWidth, aChunk, b, bWidth, bChunk, c, cs, next)
      case 4: tileOverTokens(Four.self, F.self, tiles, a, r, aWidth, aChunk, b, bWidth, bChunk, c, cs, next)
      case 5: tileOverTokens(Five.self, F.self, tiles, a, r, aWidth, aChunk, b, bWidth, bChunk, c, cs, next)
      #if MOE_AVX512
        case 6: tileOverTokens(Six.self, F.self, tiles, a, r, aWidth, aChunk, b, bWidth, bChunk, c, cs, next)
        case 7: tileOverTokens(Seven.self, F.self, tiles, a, r, aWidth, aChunk, b, bWidth, bChunk, c, cs, next)
        case 8: tileOverTokens(Eight.self, F.self, tiles, a, r, aWidth, aChunk, b, bWidth, bChunk, c, cs, next)
        case 9: tileOverTokens(Nine.self, F.self, tiles, a, r, aWidth, aChunk, b, bWidth, bChunk, c, cs, next)
        case 10: tileOverTokens(Ten.self, F.self, tiles, a, r, aWidth, aChunk, b, bWidth, bChunk, c, cs, next)
        default: tileOverTokens(Eleven.self, F.self, tiles, a, r, aWidth, aChunk, b, bWidth, bChunk, c, cs, next)
      #else
        default: tileOverTokens(Six.self, F.self, tiles, a, r, aWidth, aChunk, b, bWidth, bChunk, c, cs, next)
      #endif
      }
      r &+= count
      passes &-= 1
    }
    column &+= Lanes.width
  }
}

/// C[rows, columns] += A^T B for one chunk of up to 32 features of A and one or two of B.
@inline(__always) private func productOver<F: Factors>(
  _: F.Type, _ rows: Int, _ columns: Int, _ tiles: moei_tiles, _ a: UnsafePointer<F.Word>, _ aWidth: Int,
  _ aChunk: Int, _ b: UnsafePointer<F.Word>, _ bWidth: Int, _ bChunk: Int, _ c: Target, _ cStride: Int, _ cNext: Source,
  _ wanted: Wanted
) {
  #if MOE_AVX512
    if columns == 64 && !F.decodes {
      return wideProductOver(F.self, rows, tiles, a, aWidth, aChunk, b, bWidth, bChunk, c, cStride, cNext, wanted)
    }
  #endif
  var wanted = wanted
  wanted.fetchAll()
  var column = 0
  while column < columns {
    let left = columns &- column
    narrowProductOver(
      F.self, rows, left < 32 ? left : 32, tiles, a, aWidth, aChunk, b, bWidth, bChunk &+ column / 32, c + column,
      cStride,
      left > 32 ? Source(c) + (column &+ 32) : cNext)
    column &+= 32
  }
}

@inline(never) func productOverTokens(
  _ rows: Int, _ columns: Int, _ tiles: moei_tiles, _ a: Source, _ aWidth: Int, _ aChunk: Int, _ b: Source,
  _ bWidth: Int, _ bChunk: Int, _ c: Target, _ cStride: Int, _ cNext: Source, _ wanted: Wanted
) {
  productOver(Floats.self, rows, columns, tiles, a, aWidth, aChunk, b, bWidth, bChunk, c, cStride, cNext, wanted)
}

@inline(never) func productOverTokenPairs(
  _ rows: Int, _ columns: Int, _ tiles: moei_tiles, _ a: UnsafePointer<UInt32>, _ aWidth: Int, _ aChunk: Int,
  _ b: UnsafePointer<UInt32>, _ bWidth: Int, _ bChunk: Int, _ c: Target, _ cStride: Int, _ cNext: Source,
  _ wanted: Wanted
) {
  productOver(Pairs.self, rows, columns, tiles, a, aWidth, aChunk, b, bWidth, bChunk, c, cStride, cNext, wanted)
}
