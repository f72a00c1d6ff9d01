import CShims

// The matrix products that sum over tokens: dW = dY^T X. As in Tile.swift a few rows of outputs stay in registers, each output is
// one chain in ascending order, and a product has more than ten parameters: matrices, where they begin and how far apart their rows
// are, as in BLAS.

/// Places of 128 bytes that are wanted after a product. They are fetched one by one, token after token, or some before each pass over
/// the tokens: all at once would keep the product's own loads waiting.
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

  /// With AVX2 there are so many passes over a block of C that six places before each are all that a block has.
  @inline(__always) mutating func fetchSome() {
    var i = 0
    while i < 6 {
      fetchOne()
      i &+= 1
    }
  }
}

/// One chunk of a factor's tokens [tile][chunk][t][32], of `width` words a token.
struct TokenChunk<Word> {
  let start: UnsafePointer<Word>
  let width: Int
  let chunk: Int

  /// From the token on that comes so many behind.
  @inline(__always) func behind(_ tokens: Int) -> TokenChunk {
    TokenChunk(start: start + tokens &* width, width: width, chunk: chunk)
  }
  /// With another half of its lines in front.
  @inline(__always) func half(_ half: Int) -> TokenChunk {
    TokenChunk(start: start + 16 &* half, width: width, chunk: chunk)
  }
  @inline(__always) func chunk(_ chunk: Int) -> TokenChunk { TokenChunk(start: start, width: width, chunk: chunk) }
}

/// C[R.count, Lanes.width] += the sum over tokens t, or pairs of them, of A[t, first...]^T B[t, :].
/// For each t the line of `ahead` is fetched.
@inline(__always) private func tileOverTokens<R: Rows, F: Factors>(
  _: R.Type, _: F.Type, _ tiles: moei_tiles, _ a: TokenChunk<F.Word>, _ first: Int, _ b: TokenChunk<F.Word>,
  _ c: Target, _ cStride: Int, _ ahead: TokenChunk<F.Word>
) {
  var memory = moei_decoded_memory()
  withUnsafeMutablePointer(to: &memory) { memory in
    var rows = R(c, cStride)
    var (aTile, bTile, aheadTile, index) = (a.start, b.start, ahead.start, 0)
    while index < Int(tiles.count) {
      let height = Int(tiles.height) &- (index < Int(tiles.tall) ? 0 : 1)
      let (aRows, bRows) = (aTile + a.chunk &* height &* 32, bTile + b.chunk &* height &* 32)
      var next = aheadTile + ahead.chunk &* height &* 32
      var t = 0
      while t < height {
        let count = height &- t < 16 ? height &- t : 16
        let (some, others) = (aRows + t &* 32, bRows + t &* 32)
        F.beginTokens(first, some, count, others, memory)
        var p = 0
        while p < count {
          moei_prefetch(next)
          next += 32
          F.addTokens(&rows, p, first, some, others, memory)
          p &+= 1
        }
        t &+= count
      }
      aTile += height &* a.width
      bTile += height &* b.width
      aheadTile += height &* ahead.width
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

/// Tiles that all rows of C pass over before the next ones come. Few registers make many passes, for which the chunks of A and of B of
/// about 64 tokens stay in the first-level cache.
@inline(__always) private func tilesAtOnce(_ tiles: moei_tiles) -> Int {
  #if MOE_AVX512
    Int(tiles.count)
  #else
    tiles.height < 2 ? 64 : tiles.height < 64 ? 64 / Int(tiles.height) : 1
  #endif
}

/// C[rows, columns] += A^T B for one chunk of up to 32 features of A and one of B. `next`: those that come after them, and C's rows.
@inline(__always) private func narrowProductOver<F: Factors>(
  _: F.Type, _ rows: Int, _ columns: Int, _ tiles: moei_tiles, _ a: TokenChunk<F.Word>, _ b: TokenChunk<F.Word>,
  _ c: Target, _ cStride: Int, _ next: (a: TokenChunk<F.Word>, b: TokenChunk<F.Word>, c: Source),
  _ wanted: UnsafeMutablePointer<Wanted>
) {
  let most = tilesAtOnce(tiles)
  // Copied as in Tile.swift: what several passes read and write.
  withColumns(columns, rows, Source(c), cStride, c, cStride, copied: Int(tiles.count) > most) { _, _, c, cs in
    var (a, b, first) = (a, b, 0)
    while first < Int(tiles.count) {
      let left = Int(tiles.count) &- first
      let count = left < most ? left : most
      let tall = Int(tiles.tall) &- first
      let own = tall < 0 ? 0 : tall < count ? tall : count
      let part = moei_tiles(count: Int32(count), tall: Int32(own), height: tiles.height)
      let tokens = count &* (Int(tiles.height) &- 1) &+ own
      let (aBehind, bBehind) = left > count ? (a.behind(tokens), b.behind(tokens)) : (next.a, next.b)
      passesOverTokens(
        F.self, rows, part, a, b, c, cs, (aBehind, bBehind), first == 0 ? next.c : nil, cStride, wanted)
      (a, b) = (aBehind, bBehind)
      first &+= count
    }
  }
}

/// C[rows, 32] += A^T B over some tiles, a few rows of C in each pass. On the way what comes next is fetched: the tokens behind
/// these in passes of their own, and rows of gradients, which are far away.
@inline(__always) private func passesOverTokens<F: Factors>(
  _: F.Type, _ rows: Int, _ tiles: moei_tiles, _ a: TokenChunk<F.Word>, _ b: TokenChunk<F.Word>, _ c: Target,
  _ cs: Int, _ next: (a: TokenChunk<F.Word>, b: TokenChunk<F.Word>), _ cNext: Source?, _ cNextStride: Int,
  _ wanted: UnsafeMutablePointer<Wanted>
) {
  let perColumn = (rows &+ rowsAtOnce &- 1) / rowsAtOnce
  let (height, taller) = (rows / perColumn, rows % perColumn)
  var (column, line) = (0, 0)
  while column < 32 {
    var (r, pass) = (0, 0)
    while pass < perColumn {
      let count = height &+ (pass < taller ? 1 : 0)
      wanted.pointee.fetchSome()
      if column == 0, let cNext {
        var row = r
        while row < r &+ count {
          moei_prefetch_to_write(cNext + row &* cNextStride)
          moei_prefetch_to_write(cNext + (row &* cNextStride &+ 16))
          row &+= 1
        }
      }
      let ahead = line < 2 ? next.b.half(line) : line < 4 ? next.a.half(line &- 2) : b
      let b = b.half(column / 16)
      let c = c + (r &* cs &+ column)
      switch count {
      case 1: tileOverTokens(One.self, F.self, tiles, a, r, b, c, cs, ahead)
      case 2: tileOverTokens(Two.self, F.self, tiles, a, r, b, c, cs, ahead)
      case 3: tileOverTokens(Three.self, F.self, tiles, a, r, b, c, cs, ahead)
      case 4: tileOverTokens(Four.self, F.self, tiles, a, r, b, c, cs, ahead)
      case 5: tileOverTokens(Five.self, F.self, tiles, a, r, b, c, cs, ahead)
      #if MOE_AVX512
        case 6: tileOverTokens(Six.self, F.self, tiles, a, r, b, c, cs, ahead)
        case 7: tileOverTokens(Seven.self, F.self, tiles, a, r, b, c, cs, ahead)
        case 8: tileOverTokens(Eight.self, F.self, tiles, a, r, b, c, cs, ahead)
        case 9: tileOverTokens(Nine.self, F.self, tiles, a, r, b, c, cs, ahead)
        case 10: tileOverTokens(Ten.self, F.self, tiles, a, r, b, c, cs, ahead)
        default: tileOverTokens(Eleven.self, F.self, tiles, a, r, b, c, cs, ahead)
      #else
        default: tileOverTokens(Six.self, F.self, tiles, a, r, b, c, cs, ahead)
      #endif
      }
      r &+= count
      pass &+= 1
      line &+= 1
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
  let a = TokenChunk(start: a, width: aWidth, chunk: aChunk)
  let b = TokenChunk(start: b, width: bWidth, chunk: bChunk)
  var wanted = wanted
  withUnsafeMutablePointer(to: &wanted) { wanted in
    var column = 0
    while column < columns {
      let (left, own) = (columns &- column, b.chunk(bChunk &+ column / 32))
      let next = left > 32 ? (a, b.chunk(bChunk &+ 1), Source(c + 32)) : (a.chunk(aChunk &+ 1), b, cNext)
      narrowProductOver(F.self, rows, left > 32 ? 32 : left, tiles, a, own, c + column, cStride, next, wanted)
      column &+= 32
    }
    wanted.pointee.fetchAll()
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
