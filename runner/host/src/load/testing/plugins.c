/* Plugins for the load phase's tests. Small, but they keep every rule of the header unless a define breaks one. */
#include "limbeck.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifndef VERSION
#define VERSION "0.1.0"
#endif
#ifndef MANIFEST_ABI
#define MANIFEST_ABI "[1,0]"
#endif
#ifndef ID_PREFIX
#define ID_PREFIX "test"
#endif
#define P(id, kind) "{\"id\":\"" ID_PREFIX "." id "\",\"kind\":\"" kind "\",\"version\":\"" VERSION "\"}"
LMB_MANIFEST("{\"abi\":" MANIFEST_ABI ",\"plugins\":[" P("mse", "loss") "," P("linear", "student") "," P("pass", "teacher") "," P("keeper", "scheduler") "]}")

static const DLDataType F32 = {kDLFloat, 32, 1};
static const DLDataType I64 = {kDLInt, 64, 1};
static const lmb_host *HOST;
static int inits;

typedef struct {
  lmb_plugin base;
  const lmb_host *host;
  int active, panic, nan, kind;
  float w[6];
  int64_t seen;
  int64_t workspace_was;
} inst;

static inst *self(const lmb_plugin *p) { return (inst *)p->self; }

/* ---- managed tensors */
typedef struct { DLManagedTensorVersioned t; int64_t shape[2], strides[2]; float data[]; } block;
static int live_blocks;
static void drop_block(struct DLManagedTensorVersioned *t) { live_blocks--; free(t); }
static block *new_block(int64_t n, int64_t v) {
  block *b = calloc(1, sizeof(block) + sizeof(float) * (size_t)(n * v + 1));
  b->t.version.major = 1;
  b->t.deleter = drop_block;
  b->shape[0] = n; b->shape[1] = v; b->strides[0] = v; b->strides[1] = 1;
  b->t.dl_tensor = (DLTensor){b->data, {kDLCPU, 0}, 2, F32, b->shape, b->strides, 0};
  live_blocks++;
  return b;
}

/* ---- loss: mean squared error over rows; metric "seen" */
static lmb_status loss_plan(const lmb_plugin *p, const lmb_tensor *in, uint64_t n, uint64_t *bytes, lmb_error *e) {
  (void)n;
  if (in[0].t.shape[1] != in[1].t.shape[1]) return lmb_fail(self(p)->host, e, LMB_UNSUPPORTED, LMB_STR("widths differ"));
  *bytes = (uint64_t)in[0].t.shape[0] * 8;
  return LMB_OK;
}
static lmb_status loss_compute(const lmb_plugin *p, const lmb_loss_call *c, lmb_error *e) {
  inst *s = self(p);
  const DLTensor *a = &c->inputs[0].t, *b = &c->inputs[1].t;
  int64_t n = a->shape[0], v = a->shape[1];
  double total = 0;
  if (s->panic) {
    s->host->error_note(e, LMB_STR("row"), LMB_STR("3"));
    return lmb_fail(s->host, e, LMB_PANIC, LMB_STR("index out of bounds"));
  }
  if ((uintptr_t)c->workspace % 256 || c->workspace_bytes != (uint64_t)n * 8) return LMB_INTERNAL;
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < v; j++) {
      float x = ((const float *)a->data)[i * a->strides[0] + j * a->strides[1]];
      float y = ((const float *)b->data)[i * b->strides[0] + j * b->strides[1]];
      total += (double)(x - y) * (x - y);
      if (!(c->grads[0].flags & LMB_TENSOR_ABSENT)) {
        float *g = (float *)c->grads[0].t.data + i * v + j;
        float d = (float)(c->grad_scale / c->normalizer * 2 * (x - y));
        *g = c->grads[0].flags & LMB_TENSOR_ACCUMULATE ? *g + d : d;
      }
    }
  if (!s->nan) *(float *)c->value->t.data = (float)(total / c->normalizer);
  if (c->num_metrics != 1) return LMB_INTERNAL;
  *(float *)c->metrics[0].t.data = (float)(n / c->normalizer);
  return LMB_OK;
}
static const lmb_loss LOSS = {sizeof(lmb_loss), NULL, loss_plan, loss_compute};

/* ---- model: logits = x W, W [3,2]; the teacher is the same with fixed W */
static lmb_status forward(const lmb_plugin *p, const lmb_forward *f, lmb_error *e) {
  inst *s = self(p);
  const DLTensor *x = &f->inputs[0].t;
  int64_t n = x->shape[0];
  if (!s->active) return LMB_INVALID_STATE;
  for (uint64_t k = 0; k < f->num_wanted; k++) {
    block *b = new_block(n, 2);
#ifdef BAD_DTYPE
    b->t.dl_tensor.dtype = (DLDataType){kDLComplex, 64, 1};
#endif
#ifdef NEGATIVE_SHAPE
    b->shape[0] = -1;
#endif
#ifdef WIDE_OUTPUT
    b->shape[1] = 1; b->strides[0] = 1;
#endif
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j < 2; j++)
        for (int64_t d = 0; d < 3; d++) b->data[i * 2 + j] += ((const float *)x->data)[i * 3 + d] * s->w[d * 2 + j];
    f->outputs[k] = &b->t;
  }
#ifndef NO_TAPE
  if (f->tape) {
    *f->tape = malloc(sizeof(float) * (size_t)(n * 3) + 8);
    *(int64_t *)(void *)*f->tape = n;
    memcpy((char *)*f->tape + 8, x->data, sizeof(float) * (size_t)(n * 3));
    live_blocks++;
  }
#endif
  (void)e;
  return LMB_OK;
}
static lmb_status estimate(const lmb_plugin *p, const lmb_tensor *in, uint64_t n, uint64_t *held, uint64_t *peak, lmb_error *e) {
  (void)p; (void)n; (void)e;
  *held = 24;
  *peak = (uint64_t)in[0].t.shape[0] * 8;
  return LMB_OK;
}
static const lmb_teacher TEACHER = {sizeof(lmb_teacher), estimate, forward};

static _Thread_local lmb_param PARAM;
static int64_t W_SHAPE[2] = {3, 2}, W_STRIDES[2] = {2, 1};
static lmb_status params(const lmb_plugin *p, const lmb_param **out, uint64_t *num, lmb_error *e) {
  (void)e;
  memset(&PARAM, 0, sizeof PARAM);
  PARAM.value.name = LMB_STR("w");
  PARAM.value.t = (DLTensor){self(p)->w, {kDLCPU, 0}, 2, F32, W_SHAPE, W_STRIDES, 0};
  PARAM.flags = LMB_PARAM_TRAINABLE;
  *out = &PARAM;
  *num = 1;
  return LMB_OK;
}
static void tape_release(const lmb_plugin *p, lmb_tape *t) { (void)p; live_blocks--; free(t); }
static lmb_status backward(const lmb_plugin *p, const lmb_backward *b, lmb_error *e) {
  int64_t n = *(int64_t *)(void *)b->tape;
  const float *x = (const float *)(void *)((char *)b->tape + 8);
  (void)e;
  if (b->num_params == 1 && !(b->param_grads[0].flags & LMB_TENSOR_ABSENT)) {
    float *g = (float *)b->param_grads[0].t.data;
    if (!(b->param_grads[0].flags & LMB_TENSOR_ACCUMULATE)) memset(g, 0, sizeof(float) * 6);
    for (uint64_t k = 0; k < b->num_cotangents; k++)
      for (int64_t i = 0; i < n; i++)
        for (int64_t d = 0; d < 3; d++)
          for (int64_t j = 0; j < 2; j++) g[d * 2 + j] += x[i * 3 + d] * ((const float *)b->cotangents[k].t.data)[i * 2 + j];
  }
  tape_release(p, b->tape);
  return LMB_OK;
}
static const lmb_student STUDENT = {sizeof(lmb_student), params, NULL, backward, tape_release};

/* ---- scheduler: one group, one term, one snapshot; files what the task's name asks for */
static const lmb_group GROUP[1] = {{LMB_STR_INIT("replay"), 8, LMB_GROUP_JOIN, 0}};
static const lmb_kv TERM_INPUTS[1] = {{LMB_STR_INIT("teacher.logits"), {LMB_VALUE_STR, 0, {0}}}};
static lmb_kv term_inputs[1];
static lmb_term TERMS[1];
static const lmb_str SNAPSHOTS[1] = {LMB_STR_INIT("previous")};
static lmb_status sched_plan(const lmb_plugin *p, lmb_schedule *out, lmb_error *e) {
  (void)p; (void)e;
  term_inputs[0] = TERM_INPUTS[0];
  term_inputs[0].value.u.s = LMB_STR("previous.logits");
  memset(TERMS, 0, sizeof TERMS);
  TERMS[0].name = LMB_STR("lwf");
  TERMS[0].loss = LMB_STR(ID_PREFIX ".mse");
  TERMS[0].config_json = LMB_STR("{}");
#ifdef BAD_GROUP
  TERMS[0].rows = LMB_STR("nowhere");
#endif
  TERMS[0].inputs = term_inputs;
  TERMS[0].num_inputs = 1;
  TERMS[0].weight = 0.25;
  out->events = LMB_EVENT_TASK_BEGIN | LMB_EVENT_STEP_BEGIN | LMB_EVENT_PENALTY;
  out->claims = LMB_CLAIM_DATA;
  out->groups = GROUP; out->num_groups = 1;
  out->terms = TERMS; out->num_terms = 1;
  out->snapshots = SNAPSHOTS; out->num_snapshots = 1;
  return LMB_OK;
}
static lmb_status on_event(const lmb_plugin *p, const lmb_event *ev, const lmb_requests *r, lmb_error *e) {
  inst *s = self(p);
  lmb_value v = {LMB_VALUE_F64, 0, {0}};
  s->seen++;
  v.u.f = 0.5;
  if (lmb_str_eq(ev->task, LMB_STR("knob"))) return r->set(r->self, LMB_STR("lr"), &v, e);
  if (lmb_str_eq(ev->task, LMB_STR("unknown knob"))) return r->set(r->self, LMB_STR("speed"), &v, e);
  if (lmb_str_eq(ev->task, LMB_STR("snapshot"))) return r->snapshot(r->self, LMB_STR("previous"), 0.0, e);
  if (lmb_str_eq(ev->task, LMB_STR("rows"))) {
    lmb_rows rows = {sizeof rows, LMB_ROWS_STEP, 0, LMB_STR("replay"), ev->tensors, 1};
    return r->rows(r->self, &rows, e);
  }
  if (lmb_str_eq(ev->task, LMB_STR("fail after"))) {
    r->set(r->self, LMB_STR("lr"), &v, e);
    return lmb_fail(s->host, e, LMB_BAD_DATA, LMB_STR("changed my mind"));
  }
  if (ev->kind == LMB_EVENT_PENALTY) {
    if (ev->grads[0].grads[0].flags & LMB_TENSOR_READ_ONLY) return LMB_INVALID_ARGUMENT;
    ((float *)ev->grads[0].grads[0].t.data)[0] += 1;
  }
  return LMB_OK;
}
static const lmb_scheduler SCHEDULER = {sizeof(lmb_scheduler), sched_plan, on_event};

/* ---- instance */
#ifndef LOSS_READS
#define LOSS_READS "logits"
#endif
#ifndef LOSS_TEACHER_FLAGS
#define LOSS_TEACHER_FLAGS 0
#endif
#ifndef IN_SHAPE
#define IN_SHAPE "B,3"
#endif
#ifndef TEACHER_SHAPE
#define TEACHER_SHAPE "B,2"
#endif
#ifndef STUDENT_FLAGS
#define STUDENT_FLAGS LMB_PORT_DIFFERENTIABLE
#endif
static const lmb_port LOSS_PORTS[3] = {
    {LMB_STR_INIT("student." LOSS_READS), LMB_STR_INIT("N,V"), {0, 0}, {0, 0}, &F32, 1, LMB_PORT_DIFFERENTIABLE, 0},
    {LMB_STR_INIT("teacher." LOSS_READS), LMB_STR_INIT("N,V"), {0, 0}, {0, 0}, &F32, 1, LOSS_TEACHER_FLAGS, 0},
    {LMB_STR_INIT("seen"), LMB_STR_INIT(""), {0, 0}, {0, 0}, &F32, 1, LMB_PORT_OUTPUT, 0}};
#define MODEL(name, shape)                                                                                  \
  static const lmb_port name[4] = {                                                                         \
      {LMB_STR_INIT("pixel_values"), LMB_STR_INIT(IN_SHAPE), {0, 0}, {0, 0}, &F32, 1, 0, 0},                \
      {LMB_STR_INIT("logits"), LMB_STR_INIT(shape), {0, 0}, {0, 0}, &F32, 1, LMB_PORT_OUTPUT | STUDENT_FLAGS, 0}, \
      {LMB_STR_INIT("hidden.0"), LMB_STR_INIT("B,2"), {0, 0}, {0, 0}, &F32, 1, LMB_PORT_OUTPUT | STUDENT_FLAGS, 0}, \
      {LMB_STR_INIT("hidden.1"), LMB_STR_INIT("B,2"), {0, 0}, {0, 0}, &F32, 1, LMB_PORT_OUTPUT | STUDENT_FLAGS, 0}};
MODEL(STUDENT_PORTS, "B,2")
MODEL(TEACHER_PORTS, TEACHER_SHAPE)
static const lmb_port SCHEDULER_PORTS[2] = {
    {LMB_STR_INIT("batch.*"), LMB_STR_INIT("*"), {0, 0}, {0, 0}, &F32, 1, LMB_PORT_OPTIONAL, 0},
    {LMB_STR_INIT("row_ids"), LMB_STR_INIT("B"), {0, 0}, {0, 0}, &I64, 1, LMB_PORT_OPTIONAL, 0}};
static lmb_status ports(const lmb_plugin *p, const lmb_port **out, uint64_t *num, lmb_error *e) {
  (void)e;
  switch (self(p)->kind) {
  case LMB_KIND_LOSS: *out = LOSS_PORTS; *num = 3; break;
  case LMB_KIND_SCHEDULER: *out = SCHEDULER_PORTS; *num = 2; break;
  case LMB_KIND_TEACHER: *out = TEACHER_PORTS; *num = 4; break;
  default: *out = STUDENT_PORTS; *num = 4;
  }
  return LMB_OK;
}
static const void *iface(const lmb_plugin *p, lmb_str id) {
  int k = self(p)->kind;
  if (k == LMB_KIND_LOSS && lmb_str_eq(id, LMB_STR("lmb.loss/1"))) return &LOSS;
  if (k == LMB_KIND_SCHEDULER && lmb_str_eq(id, LMB_STR("lmb.scheduler/1"))) return &SCHEDULER;
  if ((k == LMB_KIND_STUDENT || k == LMB_KIND_TEACHER) && lmb_str_eq(id, LMB_STR("lmb.teacher/1"))) return &TEACHER;
#ifndef STUDENT_WITHOUT_STUDENT
  if (k == LMB_KIND_STUDENT && lmb_str_eq(id, LMB_STR("lmb.student/1"))) return &STUDENT;
#endif
  return NULL;
}
static lmb_status activate(const lmb_plugin *p, const lmb_activate *a, lmb_error *e) {
  inst *s = self(p);
  if (a->ctx->host->cancelled(a->ctx->host, a->ctx)) return LMB_CANCELLED;
  if (s->active) return lmb_fail(s->host, e, LMB_INVALID_STATE, LMB_STR("twice"));
  for (int i = 0; i < 6; i++) s->w[i] = (float)(i + 1) * 0.1f;
  s->active = 1;
  return LMB_OK;
}
static void deactivate(const lmb_plugin *p) { self(p)->active = 0; }
static lmb_status save(const lmb_plugin *p, const lmb_ctx *c, const lmb_writer *w, lmb_error *e) {
  (void)c; (void)e;
  for (int i = 0; i < 8; i++)
    if (w->write(w->self, (const char *)&self(p)->seen + i, 1) != 1) return LMB_IO;
  return LMB_OK;
}
static lmb_status load(const lmb_plugin *p, const lmb_ctx *c, const lmb_reader *r, lmb_error *e) {
  char byte[8];
  (void)c;
  for (int i = 0; i < 8; i++)
    if (r->read(r->self, byte + i, 1) != 1) return lmb_fail(self(p)->host, e, LMB_BAD_DATA, LMB_STR("the state is cut"));
  memcpy(&self(p)->seen, byte, 8);
  return LMB_OK;
}
static int live;
static void destroy(const lmb_plugin *p) { live--; free((void *)p->self); }

static int has(lmb_str text, const char *word) {
  size_t n = strlen(word);
  for (uint64_t i = 0; i + n <= text.len; i++)
    if (!memcmp(text.ptr + i, word, n)) return 1;
  return 0;
}
static lmb_status create(const lmb_host *h, lmb_str id, lmb_str config, const lmb_plugin **out, lmb_error *e) {
  static const char *const IDS[4] = {ID_PREFIX ".pass", ID_PREFIX ".linear", ID_PREFIX ".mse", ID_PREFIX ".keeper"};
  int kind = 0;
  for (int i = 0; i < 4; i++)
    if (lmb_str_eq(id, (lmb_str){IDS[i], strlen(IDS[i])})) kind = i + 1;
  if (!kind) return LMB_NOT_FOUND;
  if (has(config, "\"width\":13")) {
    h->error_note(e, LMB_STR("pointer"), LMB_STR("/width"));
    return lmb_fail(h, e, LMB_INVALID_CONFIG, LMB_STR("13 brings bad luck"));
  }
  inst *s = calloc(1, sizeof *s);
  s->host = h;
  s->kind = kind;
  s->panic = has(config, "\"panic\":true");
  s->nan = has(config, "\"forget\":true");
  s->base = (lmb_plugin){sizeof(lmb_plugin), s, iface, ports, activate, deactivate, save, load, destroy};
  *out = &s->base;
  live++;
  return LMB_OK;
}
#define SCHEMA "{\"type\":\"object\",\"additionalProperties\":false,\"properties\":{\"width\":{\"type\":\"integer\",\"minimum\":1,\"default\":4},\"panic\":{\"type\":\"boolean\",\"default\":false},\"forget\":{\"type\":\"boolean\",\"default\":false}}}"
#define D(k, name) {sizeof(lmb_descriptor), k, 0, LMB_STR_INIT(ID_PREFIX "." name), LMB_STR_INIT(VERSION), LMB_STR_INIT("for tests"), LMB_STR_INIT("MIT"), LMB_STR_INIT(SCHEMA), 1ull << kDLCPU, NULL, 0, NULL, 0}
static const lmb_descriptor DESCRIPTORS[4] = {D(LMB_KIND_LOSS, "mse"), D(LMB_KIND_STUDENT, "linear"), D(LMB_KIND_TEACHER, "pass"), D(LMB_KIND_SCHEDULER, "keeper")};
#ifndef OFFERED
#define OFFERED 4
#endif
static const lmb_descriptor *descriptor(uint64_t i) { return i < OFFERED ? &DESCRIPTORS[i] : NULL; }
static lmb_status init(const lmb_host *h, lmb_error *e) {
  (void)e;
  HOST = h;
  return ++inits == 1 ? LMB_OK : LMB_INTERNAL;
}
/* Counters for the tests, by id: "live", "blocks", "inits". */
static const void *module_iface(lmb_str id) {
  static int64_t value;
  if (lmb_str_eq(id, LMB_STR("test.live"))) value = live;
  else if (lmb_str_eq(id, LMB_STR("test.blocks"))) value = live_blocks;
  else if (lmb_str_eq(id, LMB_STR("test.inits"))) value = inits;
  else return NULL;
  return &value;
}
static const lmb_module M = {sizeof(lmb_module), LMB_ABI_MAJOR, LMB_ABI_MINOR, LMB_STR_INIT("cc"), init, NULL, descriptor, module_iface, create};
const lmb_module *lmb_module_v1(const lmb_host *h) { return h->abi_major == LMB_ABI_MAJOR ? &M : NULL; }
