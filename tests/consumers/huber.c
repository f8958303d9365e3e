/* Huber loss with delta = 1 of the errors 1/2 and 3, from C: on paper 1/8 and 5/2, with the slopes 1/2 and 1. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "losslib.h"
#ifdef WITH_OTHER
#include "other.h"
#endif

static int failures = 0;

static void expect(const char *what, const double computed, const double paper)
{
    const int wrong = !(fabs(computed - paper) < 1e-7);
    printf("%-28s %-10g %s\n", what, computed, wrong ? "WRONG" : "ok");
    failures += wrong;
}

int main(void)
{
    const float input[] = {0.5f, 3.0f}, target[] = {0.0f, 0.0f}, weight[] = {2.0f, 1.0f};
    float loss, each[2], grad[2];

    expect("status", losslib_huber_loss_f32(2, input, target, NULL, 1.0, LOSSLIB_MEAN, &loss, grad), LOSSLIB_OK);
    expect("mean", loss, (0.125 + 2.5) / 2);
    expect("gradient at 1/2", grad[0], 0.5 / 2);
    expect("gradient at 3", grad[1], 1.0 / 2);

    losslib_huber_loss_f32(2, input, target, weight, 1.0, LOSSLIB_SUM, &loss, grad);
    expect("weighted sum", loss, 2 * 0.125 + 2.5);
    expect("weighted gradient", grad[0], 2 * 0.5);

    losslib_huber_loss_f32(2, input, target, NULL, 1.0, LOSSLIB_NONE, each, NULL);
    expect("loss of 3, no gradient", each[1], 2.5);

    losslib_huber_loss_f32(2, input, target, NULL, 1.0, LOSSLIB_MEAN, NULL, grad);
    expect("gradient alone", grad[1], 0.5);

    expect("delta < 0 is refused", losslib_huber_loss_f32(2, input, target, NULL, -1.0, LOSSLIB_MEAN, &loss, NULL),
           LOSSLIB_VALUE_OUT_OF_DOMAIN);
    expect("no target is refused", losslib_huber_loss_f32(2, input, NULL, NULL, 1.0, LOSSLIB_MEAN, &loss, NULL), LOSSLIB_BAD_CALL);
    expect("a batch of -1 is refused", losslib_huber_loss_f32(-1, input, target, NULL, 1.0, LOSSLIB_MEAN, &loss, NULL),
           LOSSLIB_BAD_CALL);

    /* log p = -1, -2, -4 in each row; the second label is the one to leave out */
    const double log_p[] = {-1, -2, -4, -1, -2, -4, -1, -2, -4}, class_weight[] = {1, 3, 1};
    const int64_t labels[] = {1, -100, 2}, outside[] = {1, -100, 3};
    double mean, slope[9];
    losslib_nll_loss_f64(3, 3, log_p, labels, class_weight, -100, LOSSLIB_MEAN, &mean, slope);
    expect("mean over weights 3 and 1", mean, (3 * 2 + 4) / 4.0);
    expect("its gradient at the label", slope[1], -3 / 4.0);
    expect("its gradient elsewhere", slope[0], 0);
    expect("its gradient left out", slope[4], 0);
    expect("a label of 3 is refused", losslib_nll_loss_f64(3, 3, log_p, outside, NULL, -100, LOSSLIB_MEAN, &mean, slope),
           LOSSLIB_INDEX_OUT_OF_RANGE);

    /* Any strides, through the kernels: every other number of an array. */
    const double sparse[] = {0.5, 99, 3, 99}, zero = 0, one = 1;
    losslib_accumulator total = {0, 0};
    const losslib_kernel *kernel = losslib_find("huber_loss.value", sizeof(double));
    losslib_call call;
    memset(&call, 0, sizeof call);
    call.ndim = 1;
    call.shape[0] = 2;
    call.threads = 1;
    call.params[0] = 1.0;                                  /* delta */
    for (int k = 0; losslib_argument_name(kernel, k) != NULL; ++k) {
        const char *name = losslib_argument_name(kernel, k);
        if (strcmp(name, "input") == 0) call.data[k] = (void *)sparse, call.strides[k][0] = 2;
        if (strcmp(name, "target") == 0) call.data[k] = (void *)&zero;
        if (strcmp(name, "weight") == 0) call.data[k] = (void *)&one;
        if (strcmp(name, "total_loss") == 0) call.data[k] = &total;
    }
    expect("strided: status", losslib_compute(kernel, &call), LOSSLIB_OK);
    expect("strided: total", total.sum + total.carry, 0.125 + 2.5);
#ifdef WITH_OTHER
    other_double_huber_f32(2, input, target, LOSSLIB_SUM, &loss, NULL);
    expect("of the other library", loss, 2 * (0.125 + 2.5));
#endif
    return failures;
}
