// Reads PTX text. Whatever it does not know it refuses.
#include <algorithm>
#include <cctype>
#include <cstring>
#include <string_view>
#include <unordered_map>

#include "ptx.h"

namespace ptx {
namespace {

struct Token {
  std::string_view text;
  int line;
};

bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.';
}

// Words keep their dots and double colons, so that an opcode is one.
std::vector<Token> tokenize(const std::string& text) {
  std::vector<Token> tokens;
  int line = 1;
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (c == '\n') {
      ++line, ++i;
    } else if (std::isspace(static_cast<unsigned char>(c))) {
      ++i;
    } else if (text.compare(i, 2, "//") == 0) {
      while (i < text.size() && text[i] != '\n') ++i;
    } else if (text.compare(i, 2, "/*") == 0) {
      const size_t end = text.find("*/", i);
      if (end == std::string::npos) throw Fault("a comment does not end");
      for (; i < end + 2; ++i) line += text[i] == '\n';
    } else {
      size_t end = i + 1;
      if (c == '"') {
        while (end < text.size() && text[end] != '"') ++end;
        ++end;
      } else if (is_word(c)) {
        const auto is_in_word = [&](size_t at) { return at < text.size() && is_word(text[at]); };
        while (is_in_word(end) || (text.compare(end, 2, "::") == 0 && is_in_word(end + 2))) {
          end += text[end] == ':' ? 2 : 1;
        }
      }
      tokens.push_back({std::string_view(text).substr(i, end - i), line});
      i = end;
    }
  }
  return tokens;
}

struct Register {
  int bits = 0;  // 1 for a predicate
  int64_t offset = -1;  // of the first use; -1 before
};

struct Operand {
  enum class Type { none, reg, number, symbol, address, sink } type = Type::none;
  Register* reg = nullptr;
  bool is_special = false;
  uint64_t value = 0;  // bits of a number, or where a symbol lies
  int number_bits = 0;  // 32 or 64 for a floating point number
  int64_t displacement = 0;
};

int type_bits(std::string_view type) {
  if (type == ".pred") return 1;
  if (type == ".b8" || type == ".u8" || type == ".s8") return 8;
  if (type == ".b16" || type == ".u16" || type == ".s16" || type == ".f16") return 16;
  if (type == ".b32" || type == ".u32" || type == ".s32" || type == ".f32" || type == ".f16x2") return 32;
  if (type == ".b64" || type == ".u64" || type == ".s64" || type == ".f64") return 64;
  return 0;
}

class Parser {
 public:
  explicit Parser(const std::string& text) : text_(text), tokens_(tokenize(text)) {
    tokens_.push_back({"", tokens_.empty() ? 1 : tokens_.back().line});
  }

  Module run() {
    split_lines();
    try {
      while (!at_end()) top_level();
    } catch (const Fault& fault) {
      fail(fault.what());
    }
    return std::move(module_);
  }

 private:
  struct Scope {
    std::unordered_map<std::string, Register> registers;
    struct Numbered {
      std::string prefix;
      int bits;
      size_t count;
      std::vector<Register> registers;
    };
    std::vector<Numbered> numbered;
    std::unordered_map<std::string, size_t> labels;
    int parent = -1;
  };
  struct Jump {
    size_t instruction;
    std::string label;
    int scope;
  };

  [[noreturn]] void fail(const std::string& why) const {
    const int line = tokens_[std::min(start_, tokens_.size() - 1)].line;
    throw Fault("line " + std::to_string(line) + ": " + why + ": " + module_.line(line));
  }

  void split_lines() {
    size_t begin = 0;
    while (begin <= text_.size()) {
      const size_t end = std::min(text_.find('\n', begin), text_.size());
      module_.lines.push_back(text_.substr(begin, end - begin));
      begin = end + 1;
    }
  }

  bool at_end() const { return position_ + 1 >= tokens_.size(); }
  std::string_view peek() const { return tokens_[position_].text; }
  std::string_view next() {
    if (at_end()) throw Fault("the text ends early");
    return tokens_[position_++].text;
  }
  bool accept(std::string_view text) {
    if (at_end() || peek() != text) return false;
    ++position_;
    return true;
  }
  void expect(std::string_view text) {
    if (!accept(text)) throw Fault("expected " + std::string(text) + ", not " + std::string(peek()));
  }

  int64_t number(std::string_view word) const {
    const std::string text(word);
    size_t used = 0;
    int64_t value = 0;
    try {
      value = static_cast<int64_t>(std::stoull(text, &used, 0));
    } catch (const std::exception&) {
    }
    if (used == 0 || (used != text.size() && text.substr(used) != "U")) throw Fault("not a number: " + text);
    return value;
  }
  int64_t number() { return number(next()); }

  void top_level() {
    start_ = position_;
    const std::string_view word = next();
    if (word == ".version" || word == ".address_size") {
      next();
    } else if (word == ".target") {
      next();
      while (accept(",")) next();
    } else if (word == ".extern" || word == ".shared") {
      if (word == ".extern") expect(".shared");
      shared_variable(word == ".extern");
    } else if (word == ".visible" || word == ".weak") {
      if (peek() == ".shared") return;
      expect(".entry");
      kernel();
    } else if (word == ".entry") {
      kernel();
    } else {
      throw Fault("unknown directive");
    }
  }

  // Dynamic shared memory begins where that of variables ends; the machine knows only its size.
  void shared_variable(bool is_dynamic) {
    int64_t align = 1;
    if (accept(".align")) align = number();
    const int bits = type_bits(next());
    if (bits < 8) throw Fault("unknown type of a variable");
    const std::string name(next());
    int64_t count = 1;
    if (accept("[")) {
      if (peek() != "]") count = number();
      else if (!is_dynamic) throw Fault("a variable without a size");
      expect("]");
    }
    expect(";");
    align = std::max<int64_t>(align, bits / 8);
    if (shared_base % align != 0) throw Fault("unknown alignment");
    if (is_dynamic) {
      dynamic_.push_back(name);
      dynamic_align_ = std::max(dynamic_align_, align);
    } else {
      const int64_t offset = (module_.static_shared_bytes + align - 1) / align * align;
      shared_[name] = shared_base + static_cast<uint64_t>(offset);
      module_.static_shared_bytes = static_cast<uint32_t>(offset + count * bits / 8);
    }
    if (!dynamic_.empty()) {
      if (module_.static_shared_bytes % static_cast<uint64_t>(dynamic_align_) != 0) {
        throw Fault("static before dynamic shared memory: not known where the latter begins");
      }
      for (const std::string& variable : dynamic_) shared_[variable] = shared_base + module_.static_shared_bytes;
    }
  }

  void kernel() {
    kernel_ = Kernel();
    scopes_.assign(1, Scope());
    scope_ = 0;
    jumps_.clear();
    numbers_.clear(), specials_.clear();
    kernel_.register_bytes = 8 * warp_lanes;  // at 0 is a register for results that are not wanted
    kernel_.name = next();
    if (accept("(")) {
      while (!accept(")")) {
        param();
        accept(",");
      }
    }
    while (!accept("{")) {
      start_ = position_;
      const std::string_view word = next();
      if (word == ".maxntid") {
        int64_t threads = number();
        while (accept(",")) threads *= number();
        kernel_.max_threads = static_cast<uint32_t>(threads);
      } else if (word == ".minnctapersm" || word == ".maxnreg") {
        number();
      } else {
        throw Fault("unknown directive");
      }
    }
    int depth = 1;
    while (depth > 0) {
      start_ = position_;
      if (at_end()) throw Fault("the text ends early");
      if (accept("{")) {
        ++depth;
        scopes_.emplace_back();
        scopes_.back().parent = scope_;
        scope_ = static_cast<int>(scopes_.size()) - 1;
      } else if (accept("}")) {
        --depth;
        scope_ = std::max(scopes_[static_cast<size_t>(scope_)].parent, 0);
      } else {
        statement();
      }
    }
    // Running off the end is a return.
    Instruction end;
    end.kind = Kind::finish;
    end.line = tokens_[position_ - 1].line;
    kernel_.code.push_back(end);
    for (const Jump& jump : jumps_) resolve(jump);
    mark_accumulators();
    kernel_.is_stub = kernel_.code[0].kind == Kind::trap;
    const std::string key = without_hashes(kernel_.name);
    if (!module_.kernels.emplace(key, std::move(kernel_)).second) throw Fault("two kernels have the same name");
  }

  void param() {
    expect(".param");
    int64_t align = 1;
    if (accept(".align")) align = number();
    const int bits = type_bits(next());
    if (bits < 8) throw Fault("unknown type of a parameter");
    if (accept(".ptr")) throw Fault("unknown attribute of a parameter");
    Param found{std::string(next()), 0, static_cast<uint32_t>(bits / 8)};
    align = std::max<int64_t>(align, bits / 8);
    if (accept("[")) {
      found.bytes *= static_cast<uint32_t>(number());
      expect("]");
    }
    found.offset = static_cast<uint32_t>((kernel_.param_bytes + align - 1) / align * align);
    kernel_.param_bytes = found.offset + found.bytes;
    kernel_.params.push_back(found);
  }

  void statement() {
    if (accept(".pragma")) {
      next();
      expect(";");
      return;
    }
    if (accept(".reg")) return registers();
    if (accept(".shared")) return shared_variable(false);
    if (tokens_[position_ + 1].text == ":") {
      const std::string label(next());
      expect(":");
      auto& labels = scopes_[static_cast<size_t>(scope_)].labels;
      if (!labels.emplace(label, kernel_.code.size()).second) throw Fault("the label is there twice");
      return;
    }
    instruction();
  }

  void registers() {
    const int bits = type_bits(next());
    if (bits == 0) throw Fault("unknown type of a register");
    Scope& scope = scopes_[static_cast<size_t>(scope_)];
    do {
      const std::string name(next());
      if (accept("<")) {
        const size_t count = static_cast<size_t>(number());
        scope.numbered.push_back({name, bits, count, std::vector<Register>(count, Register{bits, -1})});
        expect(">");
      } else {
        scope.registers[name] = {bits, -1};
      }
    } while (accept(","));
    expect(";");
  }

  // Null where there is none of this name.
  Register* find_register(std::string_view name) {
    for (int i = scope_; i >= 0; i = scopes_[static_cast<size_t>(i)].parent) {
      Scope& scope = scopes_[static_cast<size_t>(i)];
      if (!scope.registers.empty()) {
        const auto found = scope.registers.find(std::string(name));
        if (found != scope.registers.end()) return &found->second;
      }
      for (Scope::Numbered& numbered : scope.numbered) {
        const size_t length = numbered.prefix.size();
        if (name.size() <= length || name.substr(0, length) != numbered.prefix) continue;
        size_t index = 0;
        bool digits = true;
        for (const char c : name.substr(length)) {
          digits = digits && c >= '0' && c <= '9';
          index = index * 10 + static_cast<size_t>(c - '0');
        }
        if (digits && index < numbered.count) return &numbered.registers[index];
      }
    }
    return nullptr;
  }

  uint32_t place(int bits) {
    const uint32_t bytes = bits == 1 ? 4 : bits == 64 ? 8 * warp_lanes : 4 * warp_lanes;
    const uint32_t align = bits == 1 ? 4 : 64;
    const uint32_t offset = (kernel_.register_bytes + align - 1) / align * align;
    kernel_.register_bytes = offset + bytes;
    return offset;
  }

  uint32_t offset_of(Register& reg) {
    if (reg.offset < 0) reg.offset = place(reg.bits);
    return static_cast<uint32_t>(reg.offset);
  }

  uint32_t constant(int bits, uint64_t value) {
    if (bits < 64 && bits > 1) value &= bits == 16 ? 0xffffu : 0xffffffffu;
    const auto [found, is_new] = numbers_.try_emplace({bits, value}, 0);
    if (is_new) {
      found->second = place(bits);
      kernel_.constants.push_back({found->second, bits, bits == 1 && value != 0 ? all_lanes : value});
    }
    return found->second;
  }

  Register* special(std::string_view name) {
    static const std::unordered_map<std::string_view, Special> known = {
        {"%tid.x", Special::tid_x},       {"%tid.y", Special::tid_y},       {"%tid.z", Special::tid_z},
        {"%ntid.x", Special::ntid_x},     {"%ntid.y", Special::ntid_y},     {"%ntid.z", Special::ntid_z},
        {"%ctaid.x", Special::ctaid_x},   {"%ctaid.y", Special::ctaid_y},   {"%ctaid.z", Special::ctaid_z},
        {"%nctaid.x", Special::nctaid_x}, {"%nctaid.y", Special::nctaid_y}, {"%nctaid.z", Special::nctaid_z},
        {"%laneid", Special::laneid}};
    const auto found = known.find(name);
    if (found == known.end()) return nullptr;
    const auto [place_of, is_new] = specials_.try_emplace(std::string(name), Register{32, -1});
    if (is_new) kernel_.specials[offset_of(place_of->second)] = found->second;
    return &place_of->second;
  }

  Operand operand() {
    Operand found;
    if (accept("[")) {
      found = operand();
      if (found.type == Operand::Type::number) throw Fault("an address that is a number");
      if (accept("+")) found.displacement += signed_number();
      else if (peek() == "-") found.displacement += signed_number();
      expect("]");
      if (found.type == Operand::Type::symbol) {
        found.displacement += static_cast<int64_t>(found.value);
        found.value = 0;
      }
      found.type = Operand::Type::address;
      return found;
    }
    const std::string_view word = peek();
    if (word == "-" || std::isdigit(static_cast<unsigned char>(word[0]))) {
      found.type = Operand::Type::number;
      if (word.size() > 2 && word[0] == '0' && std::strchr("fFdD", word[1]) != nullptr) {
        next();
        found.number_bits = word[1] == 'f' || word[1] == 'F' ? 32 : 64;
        if (word.size() != 2 + static_cast<size_t>(found.number_bits) / 4) throw Fault("not a floating point number");
        found.value = std::stoull(std::string(word.substr(2)), nullptr, 16);
      } else {
        found.value = static_cast<uint64_t>(signed_number());
      }
      return found;
    }
    next();
    if (word == "_") {
      found.type = Operand::Type::sink;
      return found;
    }
    found.reg = find_register(word);
    if (found.reg == nullptr) {
      found.reg = special(word);
      found.is_special = found.reg != nullptr;
    }
    if (found.reg != nullptr) {
      found.type = Operand::Type::reg;
      return found;
    }
    found.type = Operand::Type::symbol;
    const std::string name(word);
    const auto shared = shared_.find(name);
    if (shared != shared_.end()) {
      found.value = shared->second;
      return found;
    }
    for (const Param& param : kernel_.params) {
      if (param.name == name) {
        found.value = param.offset;
        return found;
      }
    }
    throw Fault("unknown operand " + name);
  }

  int64_t signed_number() {
    const bool negative = accept("-");
    const int64_t value = number();
    return negative ? -value : value;
  }

  // Of a register operand that has exactly so many bits, or a number as one.
  uint32_t place_of(const Operand& operand, int bits) {
    switch (operand.type) {
      case Operand::Type::reg:
        if (operand.reg->bits != bits) throw Fault("a register has the wrong size");
        return offset_of(*operand.reg);
      case Operand::Type::number:
        if (operand.number_bits != 0 && operand.number_bits != bits) throw Fault("a number has the wrong size");
        return constant(bits, operand.value);
      case Operand::Type::symbol:
        if (bits < 32) throw Fault("an address has the wrong size");
        return constant(bits, operand.value);
      default: throw Fault("an operand is of the wrong kind");
    }
  }

  // Of a register to write to.
  uint32_t result(const Operand& operand, int bits) {
    if (operand.type == Operand::Type::sink) return 0;
    if (operand.type != Operand::Type::reg || operand.is_special) throw Fault("a result is not a register");
    return place_of(operand, bits);
  }

  void address(Instruction& found, const Operand& operand, int index, uint32_t& place) {
    if (operand.type != Operand::Type::address) throw Fault("an operand is not an address");
    const int bits = operand.reg == nullptr ? 64 : operand.reg->bits;
    if (bits < 32) throw Fault("an address has the wrong size");
    place = operand.reg == nullptr ? constant(64, 0) : offset_of(*operand.reg);
    found.wide_address[index] = bits == 64;
    found.displacement[index] = operand.displacement;
  }

  void instruction() {
    Instruction found;
    found.line = tokens_[position_].line;
    if (accept("@")) {
      found.guarded = true;
      found.guard_negated = accept("!");
      const Register* guard = find_register(peek());
      if (guard == nullptr || guard->bits != 1) throw Fault("unknown predicate");
      found.guard = offset_of(*find_register(next()));
    }
    const std::string opcode(next());
    if (opcode == "bra" || opcode == "bra.uni") {
      found.kind = Kind::branch;
      jumps_.push_back({kernel_.code.size(), std::string(next()), scope_});
      expect(";");
      kernel_.code.push_back(found);
      return;
    }
    std::vector<Operand> operands;
    std::vector<size_t> vectors;  // sizes of those in braces, else 0
    bool pair = false;
    while (!accept(";")) {
      if (accept("{")) {
        size_t size = 0;
        do {
          operands.push_back(operand());
          ++size;
        } while (accept(","));
        expect("}");
        vectors.push_back(size);
      } else {
        operands.push_back(operand());
        vectors.push_back(0);
        if (accept("|")) {
          pair = true;
          operands.push_back(operand());
        }
      }
      if (!accept(",") && peek() != ";") throw Fault("unknown syntax");
    }
    if (opcode.compare(0, 3, "ld.") == 0 || opcode.compare(0, 3, "st.") == 0) {
      memory(found, opcode, operands);
    } else if (opcode.compare(0, 16, "wgmma.mma_async.") == 0) {
      wgmma(found, opcode, operands, vectors);
    } else if (opcode.compare(0, 5, "mov.b") == 0 && vectors.size() == 2 && (vectors[0] != 0 || vectors[1] != 0)) {
      reshape(found, opcode, operands, vectors);
    } else {
      general(found, opcode, operands, pair);
    }
    kernel_.code.push_back(found);
  }

  void general(Instruction& found, const std::string& opcode, std::vector<Operand>& operands, bool pair) {
    // A conversion takes the low bits of a register that is wider than its type.
    const bool from_32_bits = opcode.compare(0, 4, "cvt.") == 0 && opcode.compare(opcode.size() - 2, 2, "32") == 0;
    const bool wide = from_32_bits && operands.size() == 2 && operands[1].type == Operand::Type::reg &&
                      operands[1].reg->bits == 64;
    const Operation* operation = find_operation(opcode + (wide ? " of 64" : ""));
    if (operation == nullptr) throw Fault("unknown instruction");
    found.compute = operation->compute, found.kind = operation->kind, found.results = operation->results;
    if (opcode.compare(0, 5, "shfl.") == 0 && !pair) {
      Operand sink;
      sink.type = Operand::Type::sink;
      operands.insert(operands.begin() + 1, sink);
    }
    if (opcode.compare(0, 5, "shfl.") == 0) found.mask_operand = 5;
    if (opcode.compare(0, 5, "vote.") == 0) found.mask_operand = 2;
    if (found.kind == Kind::warp_barrier) found.mask_operand = 0;
    const size_t most = std::strlen(operation->operands);
    const bool variable = opcode == "bar.sync" || opcode == "barrier.sync";
    const size_t least = variable ? 1 : most;
    if (operands.size() > most || operands.size() < least) throw Fault("unknown number of operands");
    found.count = static_cast<uint8_t>(operands.size());
    int addresses = 0;
    for (size_t i = 0; i < operands.size(); ++i) {
      const char letter = operation->operands[i];
      const Operand& given = operands[i];
      uint32_t& target = found.operand[i];
      if (letter == 'a') {
        if (addresses == 2) throw Fault("more than two addresses");
        address(found, given, addresses++, target);
      } else if (letter == 'i') {
        if (given.type != Operand::Type::number || given.number_bits != 0) throw Fault("an operand must be a number");
        found.immediate = static_cast<int64_t>(given.value);
      } else if (letter == '_') {
        if (given.type != Operand::Type::sink) throw Fault("a result is not known");
      } else if (i < operation->results) {
        target = result(given, letter == 'p' ? 1 : letter == 'h' ? 16 : letter == 'w' ? 32 : 64);
      } else {
        target = place_of(given, letter == 'p' ? 1 : letter == 'h' ? 16 : letter == 'w' ? 32 : 64);
      }
    }
  }

  // ld and st: the type in memory may be narrower than the registers.
  void memory(Instruction& found, const std::string& opcode, const std::vector<Operand>& operands) {
    std::vector<std::string> parts;
    for (size_t begin = 0; begin != std::string::npos;) {
      const size_t end = opcode.find('.', begin + 1);
      parts.push_back(opcode.substr(begin, end == std::string::npos ? end : end - begin));
      begin = end;
    }
    const bool is_load = parts[0] == "ld";
    size_t i = 1;
    Space space;
    if (i < parts.size() && parts[i] == ".global") space = Space::global;
    else if (i < parts.size() && parts[i] == ".shared") space = Space::shared;
    else if (i < parts.size() && parts[i] == ".param" && is_load) space = Space::param;
    else throw Fault("unknown instruction");
    ++i;
    if (i < parts.size() && parts[i] == ".nc" && is_load && space == Space::global) {
      space = Space::read_only;
      ++i;
    }
    size_t count = 1;
    if (i < parts.size() && (parts[i] == ".v2" || parts[i] == ".v4")) count = static_cast<size_t>(parts[i++][2] - '0');
    const int bits = i + 1 == parts.size() ? type_bits(parts[i]) : 0;
    const int least = space == Space::shared ? 16 : 8;  // shared memory is watched in pieces of 2 bytes
    if (bits < least || bits * count > 128) throw Fault("unknown instruction");
    if (operands.size() != count + 1) throw Fault("unknown number of operands");
    const Operand& where = is_load ? operands.back() : operands.front();
    int register_bytes = 0;
    for (size_t k = 0; k < count; ++k) {
      const Operand& value = operands[is_load ? k : k + 1];
      const bool is_register = value.type == Operand::Type::reg;
      const int wanted = is_register ? value.reg->bits : std::max(bits, 16);
      if (wanted < bits || wanted == 1) throw Fault("a register has the wrong size");
      const int bytes = wanted == 64 ? 8 : 4;
      if (register_bytes != 0 && register_bytes != bytes) throw Fault("registers of different sizes");
      register_bytes = bytes;
      found.operand[1 + k] = is_load ? result(value, wanted) : place_of(value, wanted);
      // A 16-bit register keeps no more than its bits.
      if (wanted == 16 && parts[i][1] == 's' && bits < 16) throw Fault("unknown instruction");
    }
    address(found, where, 0, found.operand[0]);
    found.count = static_cast<uint8_t>(count);
    found.first_result = 1, found.results = is_load ? found.count : 0;
    found.compute = is_load ? find_load(space, bits / 8, parts[i][1] == 's', register_bytes)
                            : find_store(space, bits / 8, register_bytes);
  }

  // Between a register and the parts that it is made of.
  void reshape(Instruction& found, const std::string& opcode, const std::vector<Operand>& operands,
               const std::vector<size_t>& vectors) {
    const int bits = type_bits(std::string_view(opcode).substr(3));
    const bool unpack = vectors[0] != 0;
    const size_t parts = vectors[0] + vectors[1];
    if (vectors[0] != 0 && vectors[1] != 0) throw Fault("unknown instruction");
    if ((bits != 32 && bits != 64) || parts != 2) throw Fault("unknown instruction");
    const Operation* operation = find_operation(std::string(unpack ? "unpack." : "pack.") + std::to_string(bits));
    found.compute = operation->compute, found.results = operation->results;
    for (size_t i = 0; i < 3; ++i) {
      const int size = i == (unpack ? 2 : 0) ? bits : bits / 2;
      found.operand[i] = i < found.results ? result(operands[i], size) : place_of(operands[i], size);
    }
  }

  void wgmma(Instruction& found, const std::string& opcode, const std::vector<Operand>& operands,
             const std::vector<size_t>& vectors) {
    const Operation* operation = find_operation(opcode);
    if (operation == nullptr) throw Fault("unknown instruction");
    found.compute = operation->compute, found.kind = operation->kind, found.results = operation->results;
    if (vectors.empty() || vectors[0] != 64 || operands.size() != 71) throw Fault("unknown number of operands");
    std::vector<uint32_t> places;
    for (size_t i = 0; i < 64; ++i) {
      if (operands[i].type != Operand::Type::reg) throw Fault("an accumulator is not a register");
      places.push_back(result(operands[i], 32));
    }
    for (size_t i = 0; i < 2; ++i) found.operand[i] = place_of(operands[64 + i], 64);
    found.operand[2] = place_of(operands[66], 1);  // whether to add to what is there
    for (size_t i = 67; i < 71; ++i) {
      const uint64_t wanted = i < 69 ? 1 : 0;  // factors of the operands, and whether they are transposed
      const bool known = operands[i].type == Operand::Type::number && operands[i].value == wanted;
      if (!known) throw Fault("unknown operand of wgmma");
    }
    found.immediate = static_cast<int64_t>(kernel_.accumulators.size());
    kernel_.accumulators.push_back(places);
  }

  void resolve(const Jump& jump) {
    for (int i = jump.scope; i >= 0; i = scopes_[static_cast<size_t>(i)].parent) {
      const auto& labels = scopes_[static_cast<size_t>(i)].labels;
      const auto found = labels.find(jump.label);
      if (found == labels.end()) continue;
      kernel_.code[jump.instruction].immediate = static_cast<int64_t>(found->second);
      return;
    }
    throw Fault("there is no label " + jump.label);
  }

  // The rules of wgmma are about few registers: the instructions that use these say so.
  void mark_accumulators() {
    std::vector<uint32_t> all;
    for (const auto& places : kernel_.accumulators) all.insert(all.end(), places.begin(), places.end());
    if (all.empty()) return;
    std::sort(all.begin(), all.end());
    const auto is_one = [&](uint32_t place) { return std::binary_search(all.begin(), all.end(), place); };
    for (Instruction& instruction : kernel_.code) {
      const auto used = std::any_of(std::begin(instruction.operand), std::end(instruction.operand), is_one);
      instruction.uses_accumulators = used;
    }
  }

  const std::string& text_;
  std::vector<Token> tokens_;
  size_t position_ = 0, start_ = 0;
  Module module_;
  std::unordered_map<std::string, uint64_t> shared_;
  std::vector<std::string> dynamic_;
  int64_t dynamic_align_ = 1;
  Kernel kernel_;
  std::vector<Scope> scopes_;
  int scope_ = 0;
  std::vector<Jump> jumps_;
  std::map<std::pair<int, uint64_t>, uint32_t> numbers_;
  std::unordered_map<std::string, Register> specials_;
};

}  // namespace

// `_GLOBAL__N__`, a hash of 8 digits, `_`, a number, `_`, so many characters of the file's name, `_`, another hash.
std::string without_hashes(const std::string& name) {
  static const std::string start = "_GLOBAL__N__";
  std::string clean = name;
  for (size_t at = clean.find(start); at != std::string::npos; at = clean.find(start, at)) {
    at += start.size();
    const auto erase = [&](size_t from) {
      for (size_t i = from; i < std::min(from + 8, clean.size()); ++i) clean[i] = '0';
      return from + 8;
    };
    size_t end = erase(at) + 1;
    size_t length = 0;
    for (; end < clean.size() && std::isdigit(static_cast<unsigned char>(clean[end])); ++end) {
      length = length * 10 + static_cast<size_t>(clean[end] - '0');
    }
    end += 1 + length;
    if (length > 0 && end < clean.size() && clean[end] == '_') erase(end + 1);
  }
  return clean;
}

Module parse(const std::string& text) { return Parser(text).run(); }

}  // namespace ptx
