// Huber loss with delta = 1 of the errors 1/2 and 3, from C++: on paper 1/8 and 5/2, with the slopes 1/2 and 1.
#include <cmath>
#include <iostream>
#include <vector>

#include "losslib.h"

int main()
{
    const std::vector<double> input{0.5, 3.0}, target{0.0, 0.0};
    std::vector<double> grad(input.size());
    double loss = 0;
    const int status = losslib_huber_loss_f64(static_cast<int64_t>(input.size()), input.data(), target.data(), nullptr, 1.0,
                                              LOSSLIB_SUM, &loss, grad.data());
    std::cout << status << ' ' << loss << ' ' << grad[0] << ' ' << grad[1] << ' ' << losslib_max_threads() << " threads\n";
    return !(status == LOSSLIB_OK && loss == 2.625 && grad[0] == 0.5 && grad[1] == 1.0 && losslib_max_threads() >= 1);
}
