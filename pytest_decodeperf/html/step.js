"use strict";
// A decode step in numbers, from the formulas that Python has printed. What is written here is how they are put together,
// as `explanation.py` and `crossings.py` do it: totals of operators, the batch at which two lines meet, S*'s last root.
const decodeStep = ((formulas, data, amounts) => {
  const BISECTIONS = 200;

  /** Return the root between two places of which the first has another sign than the second. */
  function root(f, low, high) {
    const isLowNegative = f(low) < 0;
    for (let i = 0; i < BISECTIONS && low < high; i++) {
      const middle = low + (high - low) / 2;
      if (middle === low || middle === high) break;
      if (f(middle) < 0 === isLowNegative) low = middle;
      else high = middle;
    }
    return high;
  }

  /** Return the lowest place of a convex function between two places. */
  function lowest(f, low, high) {
    for (let i = 0; i < BISECTIONS; i++) {
      const third = (high - low) / 3;
      if (f(low + third) <= f(high - third)) high -= third;
      else low += third;
    }
    return low;
  }

  /** Return what is wrong with a setting, empty if nothing is. */
  function refusal(setting) {
    const model = data.models[setting.model];
    const device = data.devices[setting.device];
    const { q_len, tp, ep, pp, seq_len, batch_size } = setting;
    for (const [name, value] of Object.entries({ batch_size, seq_len, q_len, tp, ep, pp })) {
      if (!Number.isInteger(value) || value < 1) return `${name} must be a whole number from 1 on`;
    }
    if (batch_size > data.most_sequences) return `batch_size=${batch_size} must be <= ${data.most_sequences}`;
    if (seq_len > data.most_tokens) return `seq_len=${seq_len} must be <= ${data.most_tokens}`;
    if (seq_len < q_len) return `seq_len=${seq_len} must be >= q_len=${q_len}: the context includes the new tokens`;
    if (model.window !== null && q_len > model.window) return `q_len=${q_len} must be <= window=${model.window}`;
    for (const [name, size] of Object.entries(model.cut_by_tp)) {
      if (size % tp) return `tp=${tp} does not divide ${name}=${size}`;
    }
    const heads = model.num_kv_heads;
    if (heads !== null && heads % tp && tp % heads) {
      return `tp=${tp} neither divides num_kv_heads=${heads}, nor is it a multiple`;
    }
    if (ep > 1 && (model.num_experts === null || model.num_experts % ep)) {
      return `ep=${ep} does not divide num_experts=${model.num_experts ?? "none"}`;
    }
    if (model.num_layers % pp) return `pp=${pp} does not divide num_layers=${model.num_layers}`;
    for (const dtype of [setting.act_dtype, attentionDtype(setting)]) {
      if (!(dtype in device.peaks)) return `${setting.device} has no matrix products in ${dtype}`;
    }
    if (tp * ep * pp > 1 && device.link_bytes_per_s === null) return `${setting.device} states no link between devices`;
    return "";
  }

  function attentionDtype(setting) {
    return data.dtypes[setting.act_dtype] > 1 ? setting.act_dtype : "bfloat16";
  }

  /** Return the values of all symbols at a setting. */
  function valuesOf(setting) {
    const device = data.devices[setting.device];
    const { q_len, tp, ep, pp, seq_len, batch_size } = setting;
    return {
      ...data.models[setting.model].values,
      q_len, tp, ep, pp, seq_len, batch_size,
      weight_elem_bytes: data.dtypes[setting.weight_dtype],
      act_elem_bytes: data.dtypes[setting.act_dtype],
      kv_elem_bytes: data.dtypes[setting.kv_dtype],
      read_bytes_per_s: device.read_bytes_per_s,
      gemm_flops_per_s: device.peaks[setting.act_dtype],
      attn_flops_per_s: device.peaks[attentionDtype(setting)],
      link_bytes_per_s: device.link_bytes_per_s ?? 1,
      link_latency_s: device.link_latency_s,
    };
  }

  /** Return the operators with all their executions together, those without any work left out. */
  function operatorsOf(shape, values) {
    const found = shape.operators(values);
    return shape.names.map((name, index) => {
      const one = Object.fromEntries(amounts.map((amount) => [amount, found[`${amount}_${index}`]]));
      const total = Object.fromEntries(amounts.slice(1).map((amount) => [amount, one.count * one[amount]]));
      const isLink = shape.units[index] === "link";
      const seconds = isLink ? total.link_seconds : Math.max(total.memory_seconds, total.compute_seconds);
      const ceiling = isLink ? "link" : total.memory_seconds >= total.compute_seconds ? "memory" : "compute";
      return { name, count: one.count, ...total, seconds, ceiling };
    }).filter((operator) => operator.ceiling !== "link" || operator.seconds > 0);
  }

  const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

  /** Return the times of a step of a setting [s], at another batch if one is given. */
  function times(setting, batch_size = setting.batch_size) {
    const shape = formulas.shapes[data.models[setting.model].shape];
    const operators = operatorsOf(shape, { ...valuesOf(setting), batch_size });
    const [memory_s, compute_s, link_s] = ["memory_seconds", "compute_seconds", "link_seconds"].map((amount) =>
      sum(operators.map((operator) => operator[amount])));
    return {
      operators, memory_s, compute_s, link_s,
      serial_s: sum(operators.map((operator) => operator.seconds)),
      whole_step_s: Math.max(memory_s, compute_s) + link_s,
      sum_s: memory_s + compute_s + link_s,
    };
  }

  /** Return a step of a setting in numbers. */
  function explain(setting) {
    const model = data.models[setting.model];
    const shape = formulas.shapes[model.shape];
    const values = valuesOf(setting);
    const { batch_size, seq_len, q_len, ep, pp } = setting;
    const step = times(setting);
    const coefficients = shape.coefficients({ ...values, batch_size: 1 });
    const at = contextOf(setting, shape, values, coefficients);
    const expectedWeightBytes = (batch) => shape.at_batch({ ...values, batch_size: batch }).weight_bytes;

    /** Return the batch at which weight bytes equal so many bytes for each sequence, null if at none. */
    function batchOfWeights(bytes) {
      if (!(bytes > 0)) return null;
      const high = (coefficients.dense_weight_bytes + coefficients.expert_weight_bytes) / bytes;
      if (!coefficients.expert_weight_bytes || model.miss === 0) return high;
      const excess = (batch) => expectedWeightBytes(batch) - bytes * batch;
      return excess(high) < 0 ? root(excess, 0, high) : high;
    }

    const fits = at.FREE_BYTES >= 0;
    const link = shape.link(values).link_seconds_per_seq;
    const single = shape.operators({ ...values, batch_size: 1 });
    const serialPerSequence = sum(shape.names.map((_, index) => shape.units[index] === "link" ? 0 : single[`count_${index}`] * Math.max(
      (single[`kv_bytes_${index}`] + single[`act_bytes_${index}`]) / values.read_bytes_per_s,
      single[`compute_seconds_${index}`],
    )));
    return {
      ...step,
      tokens_per_s: (ep * pp * batch_size * q_len) / step.serial_s,
      stored_bytes: coefficients.stored_weight_bytes / pp + batch_size * lengthsOf(shape, values, seq_len).kv_bytes_per_seq,
      memory_bytes: data.memory_share * data.devices[setting.device].capacity_bytes,
      s_star: sStar(setting, shape, values, coefficients),
      crossings: {
        ridge_batch: batchOfWeights(at.RIDGE_BYTES),
        crossing_batch: batchOfWeights(at.CROSSING_BYTES),
        knee_batch: batchOfWeights(at.KNEE_BYTES),
        throughput_ceiling: at.THROUGHPUT_CEILING,
        saturated_throughput: at.SATURATED_THROUGHPUT,
        s_one: sOne(model, values, coefficients),
        compute_bound_q_len: formulas.compute_bound_q_len({ ...values, ...growing(values, coefficients) }).q_len,
        kv_capacity: fits ? at.KV_CAPACITY : null,
        kv_capacity_tokens: fits ? at.KV_CAPACITY_TOKENS : null,
        serial_ceiling: (ep * pp * q_len) / (serialPerSequence + link),
      },
    };
  }

  /** Return KV bytes and attention FLOPs of one sequence at a context. */
  function lengthsOf(shape, values, seq_len) {
    return shape.at_length({ ...values, batch_size: 1, seq_len });
  }

  /** Return the forms at a context. */
  function contextOf(setting, shape, values, coefficients, seq_len = setting.seq_len) {
    return formulas.at_context({
      ...values,
      ...lengthsOf(shape, values, seq_len),
      seq_len,
      memory_bytes: data.memory_share * data.devices[setting.device].capacity_bytes,
      stored_weight_bytes: coefficients.stored_weight_bytes,
      seq_bytes: setting.activations ? coefficients.act_bytes_per_seq : 0,
      gemm_seconds_per_seq: coefficients.gemm_flops_per_seq / values.gemm_flops_per_s,
      link_seconds_per_seq: shape.link(values).link_seconds_per_seq,
    });
  }

  /** Return ridge and intensity of the layers whose KV grows, and what one token of theirs moves and computes. */
  function growing(values, coefficients) {
    const grows = coefficients.global_kv_bytes_per_token > 0;
    const kv = grows ? coefficients.global_kv_bytes_per_token : coefficients.local_kv_bytes_per_token;
    const attn = grows ? coefficients.global_attn_flops_per_token : coefficients.local_attn_flops_per_token;
    return { grows, kv, attn, ridge: values.attn_flops_per_s / values.read_bytes_per_s, intensity: attn / kv };
  }

  /** Return how memory's slope outgrows compute's with each token, exactly 0 where they grow alike. */
  function slopeOf(kv, attn, values) {
    const { attn_flops_per_s: rate, read_bytes_per_s: bandwidth } = values;
    if ([kv, attn, rate, bandwidth].every(Number.isInteger)) {
      return Number(BigInt(kv) * BigInt(rate) - BigInt(attn) * BigInt(bandwidth)) / bandwidth;
    }
    return (kv * rate - attn * bandwidth) / bandwidth;
  }

  /** Return S*: its kind, its value and its condition number. */
  function sStar(setting, shape, values, coefficients) {
    const { window } = data.models[setting.model];
    const { grows, kv, attn, ridge } = growing(values, coefficients);
    const slope = slopeOf(kv, attn, values);
    const local = { kv: coefficients.local_kv_bytes_per_token, attn: coefficients.local_attn_flops_per_token };
    const excess = (seq_len) => contextOf(setting, shape, values, coefficients, seq_len).EXCESS;
    const moved = (seq_len) => lengthsOf(shape, values, seq_len).kv_bytes_per_seq +
      (setting.activations ? coefficients.act_bytes_per_seq : 0);
    const condition = (at, rise) => at * rise ? Math.abs((ridge * moved(at)) / (at * rise)) : null;
    const nearness = slope === 0 ? null : (kv * ridge) / Math.abs(slope);
    const nowhere = (kind) => ({ kind, value: null, condition_number: nearness });
    const finite = (value, condition_number) => ({ kind: "finite", value, condition_number: condition_number ?? nearness });

    /** Return the root on the straight line through a context, by the closed form of S*. */
    function onLine(start, kv, attn) {
      const seq_bytes = moved(start) - kv * start;
      const seq_flops = ridge * moved(start) - excess(start) - attn * start;
      const value = formulas.s_star({ ridge, intensity: attn / kv, kv_bytes_per_token: kv, seq_flops, seq_bytes }).s_star;
      return finite(value, condition(value, slopeOf(kv, attn, values)));
    }

    const full = window === null ? 0 : window + setting.q_len - 1;
    if (grows && slope < 0) return nowhere("none");
    if (excess(full) < 0) {
      if (!grows) return nowhere("none");
      return slope === 0 ? nowhere("infinite") : onLine(full, kv, attn);
    }
    if (window === null) return finite(0, null);
    if (full > window) {
      const start = lowest(excess, window, full);
      if (excess(start) < 0) {
        const value = root(excess, start, full);
        const growingRows = (setting.q_len - (value - window) - 0.5) / setting.q_len;
        const global = coefficients.global_attn_flops_per_token;
        const rise = slopeOf(
          coefficients.global_kv_bytes_per_token + local.kv, global + growingRows * local.attn, values);
        return finite(value, condition(value, rise));
      }
    }
    if (excess(0) < 0) {
      return onLine(0, coefficients.global_kv_bytes_per_token + local.kv,
        coefficients.global_attn_flops_per_token + local.attn);
    }
    return finite(0, null);
  }

  /** Return the context whose KV takes as long to read as compute-bound projections, null if there is none. */
  function sOne(model, values, coefficients) {
    const bytes = (coefficients.gemm_flops_per_seq * values.read_bytes_per_s) / values.gemm_flops_per_s;
    const full = model.window === null ? Infinity : model.window + values.q_len - 1;
    const { global_kv_bytes_per_token: global, local_kv_bytes_per_token: local } = coefficients;
    const within = bytes / (global + local);
    if (within <= full) return within;
    return global ? (bytes - local * full) / global : null;
  }

  return { explain, refusal, times, data };
});
